from __future__ import annotations

import pytest


@pytest.mark.slow
def test_no_reader_ends_otherwise_than_with_a_clear_error(start_script):
    done = start_script("tests/stress/fuzz_readers.py", "--minutes", 0, "--seed", 5)  # 300 files for each
    assert done.returncode == 0, done.stdout[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 8 and all("300 files" in line and "0 findings" in line for line in lines[:7])
    assert all("ValueError" in line and "read " in line for line in lines[:7])  # some files are still fine
