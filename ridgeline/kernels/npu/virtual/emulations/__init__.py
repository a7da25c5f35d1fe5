"""The ops of torch_npu as their documentation says, in float64 on the host.

They stand for Huawei's kernels and so share no code with ``kernels/reference``, against which the calls to them are
judged. Each takes its op's schema. Sources: the documentation inside the torch_npu 2.13.0 wheel
(``_op_plugin_docs.py``), Ascend/op-plugin 517f2e7d (``derivatives.yaml`` and the golden functions of its tests).
"""
