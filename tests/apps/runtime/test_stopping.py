"""Stop when asked to."""

import signal
import threading

import pytest

from ridgeline.apps.runtime.stopping import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_interrupts(number):
    """The step under way ends after the first; whoever cannot wait sends another."""
    with stop_on_signals() as asked:
        assert not asked()
        signal.raise_signal(number)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_signals_mean_what_they_did_before_on_leaving():
    """Handlers are put back, whatever happens inside."""
    before = signal.getsignal(signal.SIGTERM)

    def fail_inside():
        with stop_on_signals():
            assert signal.getsignal(signal.SIGTERM) is not before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert signal.getsignal(signal.SIGTERM) is before


def test_elsewhere_than_in_the_main_thread_nothing_is_asked():
    """Python takes signals in the main thread only, so the answer stays no and nothing breaks."""
    answers = []

    def ask():
        with stop_on_signals() as asked:
            answers.append(asked())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [False]
