import ctypes
import os

from paretune.silence import c_silent

C = ctypes.CDLL("ucrtbase" if os.name == "nt" else None)


def test_c_code_is_silent_in_the_block_and_not_around_it(capfd):
    C.puts(b"before")
    with c_silent():
        C.puts(b"inside")
    C.puts(b"after")
    C.fflush(None)
    assert capfd.readouterr().out.split() == ["before", "after"]
