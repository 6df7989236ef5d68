"""The extension as it was built: instructions that not every processor has stand only in functions that are chosen."""

import platform
import re
import shutil
import subprocess

import fastfeed._C
import pytest

# AVX's mnemonics begin with v; 32-byte, 64-byte and mask registers are its own.
AVX = re.compile(r"\s+[0-9a-f]+:\t(?:v(?!er[rw]\b)\w+|.*%[yz]mm\d|.*%k[0-7]\b)")

CHOSEN = re.compile(r"\b(?:avx2|avx512|avx512_vnni|avx512_bf16)::")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one instruction set here")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
def test_no_avx_but_where_it_was_asked_for():
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", fastfeed._C.__file__]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    function, users = "", set()
    for line in lines:
        if heading := re.fullmatch(r"[0-9a-f]+ <(.*)>:", line):
            function = heading[1]
        elif AVX.match(line):
            users.add(function)
    if not any("write_rows" in user for user in users):
        pytest.skip("the extension was stripped of its symbols")
    assert {user for user in users if not CHOSEN.search(user)} == set()
    assert any("avx2::" in user for user in users)
    assert any("avx512::" in user for user in users)
    assert any("avx512_vnni::" in user for user in users)
    assert any("avx512_bf16::" in user for user in users)
