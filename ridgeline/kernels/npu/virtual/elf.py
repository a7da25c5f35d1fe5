"""What a shared library of 64-bit Linux asks of others and offers them."""

import struct
from pathlib import Path

import attrs

_HEADER = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_DYNAMIC = struct.Struct("<qQ")
_DYNAMIC_SECTION, _DYNAMIC_SYMBOLS = 6, 11
_NEEDED = 1
_GLOBAL = 1


@attrs.frozen(kw_only=True)
class SharedLibrary:
    """The dynamic part of one file.

    Attributes:
        needed: Names of the libraries it loads.
        undefined: Symbols that others must define; weak ones, which may be missing, are left out.
        defined: Symbols it defines.
    """

    needed: frozenset[str]
    undefined: frozenset[str]
    defined: frozenset[str]


def read_shared_library(path: Path) -> SharedLibrary:
    """Read a file's dynamic section and symbols.

    Raises:
        ValueError: It is not an ELF file of 64 bits, little-endian.

    Source:
        System V ABI, edition 4.1, chapters 4 and 5; the 64-bit records are elf(5).
    """
    data = path.read_bytes()
    if not data.startswith(_HEADER):
        raise ValueError(f"{path}: not a 64-bit little-endian ELF file")
    begin, count = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<H", data, 60)[0]
    sections = [_SECTION.unpack_from(data, begin + _SECTION.size * index) for index in range(count)]
    needed, undefined, defined = set(), set(), set()
    for _, kind, _, _, offset, size, link, *_ in sections:
        if kind not in (_DYNAMIC_SECTION, _DYNAMIC_SYMBOLS):
            continue
        names = sections[link][4]
        content = data[offset : offset + size]
        if kind == _DYNAMIC_SECTION:
            needed |= {_text(data, names + value) for tag, value in _DYNAMIC.iter_unpack(content) if tag == _NEEDED}
            continue
        for name, info, _, section, _, _ in _SYMBOL.iter_unpack(content):
            if section:
                defined.add(_text(data, names + name))
            elif info >> 4 == _GLOBAL:
                undefined.add(_text(data, names + name))
    return SharedLibrary(needed=frozenset(needed), undefined=frozenset(undefined), defined=frozenset(defined))


def _text(data: bytes, begin: int) -> str:
    return data[begin : data.index(b"\0", begin)].decode()
