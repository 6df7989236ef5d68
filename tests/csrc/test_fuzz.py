"""The native code in random cases, under the compiler's sanitizers: builds and runs the programs of this folder."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
GXX = shutil.which("g++")
SEED, BATCHES = 1, 1500

# Not optimized: faster to compile, and no access is optimized away. Without the checks of pointers that take a third of
# the time to compile: of an access that is wrong by them the address sanitizer tells.
MEMORY = (
    *("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize=null,object-size,pointer-overflow"),
    "-fno-sanitize-recover=all",
)
THREADS = ("-O1", "-g", "-fsanitize=thread")
PROGRAMS = {  # name: (sources, flags)
    "finish": (["fuzz_finish.cpp"], MEMORY),
    # As setup.py builds it: optimized, with the vectors that the compiler makes.
    "finish_shipped": (["fuzz_finish.cpp"], ("-O3", "-DPROCESSOR_ONLY")),
    "resample": (["fuzz_resample.cpp", CSRC / "pool.cpp"], MEMORY),
    "resample_shipped": (["fuzz_resample.cpp", CSRC / "pool.cpp"], ("-O3",)),
    "place": (["fuzz_place.cpp", CSRC / "pool.cpp"], MEMORY),
    "stack": (["fuzz_stack.cpp", CSRC / "stack.cpp", CSRC / "pool.cpp"], MEMORY),
    "augment": (
        ["fuzz_augment.cpp", *(CSRC / f"{name}.cpp" for name in ("augment", "bilinear", "blur", "hue", "pool"))],
        (*MEMORY, "-fsanitize=float-cast-overflow"),
    ),
    "bilinear": (["bilinear_ways.cpp"], ("-O3", "-fno-math-errno", "-fno-trapping-math")),  # as setup.py builds it
    "blur": (["blur_ways.cpp"], ("-O3", "-fno-math-errno", "-fno-trapping-math")),  # as setup.py builds it
    "hue": (["hue_colours.cpp"], ("-O3", "-fno-math-errno", "-fno-trapping-math")),  # vectors, as in setup.py
    "header": (["fuzz_header.cpp", CSRC / "image_header.cpp"], MEMORY),
    "pool": (["pool_threads.cpp", CSRC / "pool.cpp"], ("-O0", "-g")),
    "pool_sanitized": (["pool_threads.cpp", CSRC / "pool.cpp"], THREADS),
}

POOL_TESTS = (
    *("every_piece_once", "done_without_wait", "many_small_tasks", "several_callers", "pieces_that_run_pieces"),
    *("exceptions", "end_with_work_under_way", "parallel_ranges", "refused_threads", "fork_and_several_callers"),
)
# The thread sanitizer cannot follow children of a process that has threads.
FORKS_OF_THREADS = ("fork_while_busy", "fork_and_end")

pytestmark = pytest.mark.skipif(GXX is None, reason="NATIVE CODE NOT TESTED: needs g++")


def compile_program(target, sources, flags):
    command = [GXX, "-std=c++17", "-ffp-contract=off", "-pthread", f"-I{CSRC}", "-o", target]
    result = subprocess.run([*command, *flags, *sources], cwd=HERE, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return target


def run(program, *arguments):
    environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", "TSAN_OPTIONS": "atexit_sleep_ms=0"}
    result = subprocess.run(
        [program, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, f"{result.returncode}: {result.stdout}{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Return a future of each program's path; two at a time are being built."""
    folder = tmp_path_factory.mktemp("csrc")
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(compile_program, folder / name, *how) for name, how in PROGRAMS.items()}


@pytest.fixture(scope="module")
def sanitizer(tmp_path_factory):
    """Return a function that skips a test where a program with these flags cannot be built or run at all."""
    folder = tmp_path_factory.mktemp("sanitizer")
    (folder / "empty.cpp").write_text("int main() {}")

    def need(flags):
        command = [GXX, *flags, "empty.cpp", "-o", "empty"]
        if subprocess.run(command, cwd=folder, capture_output=True).returncode != 0:
            pytest.skip(f"NATIVE CODE NOT TESTED: g++ has no runtime for {' '.join(flags)}")
        if subprocess.run([folder / "empty"], capture_output=True).returncode != 0:
            pytest.skip(f"NATIVE CODE NOT TESTED: programs built with {' '.join(flags)} cannot run here")

    return need


def fuzz(program, seed, count):
    """Run `count` random cases; return how many there were of each kind."""
    made = dict(line.split(": ") for line in run(program, seed, count).splitlines())
    assert made.pop("cases") == str(count)
    return {kind: int(times) for kind, times in made.items()}


def test_every_way_of_the_last_pass_gives_the_same_bits(programs, sanitizer):
    sanitizer(MEMORY)
    made = fuzz(programs["finish"].result(), SEED, BATCHES)
    assert made["pieces"] == made["GPU, pixel by pixel"] == made["baseline, dividing"] == BATCHES
    # Four fifths of the batches or so have a mean and std that need no divisions, and a third has whole groups too.
    assert made["baseline"] > BATCHES / 2
    assert made["GPU, in tiles"] > BATCHES / 5


def test_every_way_of_the_last_pass_gives_the_same_bits_as_it_ships(programs):
    fuzz(programs["finish_shipped"].result(), SEED + BATCHES, 3 * BATCHES)


def test_every_way_of_resizing_gives_the_same_bytes(programs, sanitizer):
    sanitizer(MEMORY)
    made = fuzz(programs["resample"].result(), SEED, BATCHES)
    assert made["baseline"] == made["pieces"] == BATCHES
    # About a third of the images shrink so much more in height that the vertical pass comes first.
    assert min(made["vertical first"], made["horizontal first"]) > BATCHES / 5
    assert made["part"] > BATCHES / 20


def test_every_way_of_resizing_gives_the_same_bytes_as_it_ships(programs):
    fuzz(programs["resample_shipped"].result(), SEED + BATCHES, 5 * BATCHES)


@pytest.mark.parametrize(("name", "count"), [("place", 3000), ("stack", 3000), ("augment", 3000), ("header", 5000)])
def test_random_cases(name, count, programs, sanitizer):
    sanitizer(MEMORY)
    fuzz(programs[name].result(), SEED, count)


def test_every_way_of_blurring_gives_the_same_bytes(programs):
    fuzz(programs["blur"].result(), SEED, 500)


def test_every_way_of_interpolating_gives_pillows_bytes(programs):
    fuzz(programs["bilinear"].result(), SEED, 2000)


def test_hue_of_every_colour(programs):
    assert run(programs["hue"].result()) == "every colour\n"


@pytest.mark.parametrize("name", POOL_TESTS)
def test_pool_has_no_races(name, programs, sanitizer):
    sanitizer(THREADS)
    run(programs["pool_sanitized"].result(), name)


@pytest.mark.parametrize("name", POOL_TESTS + FORKS_OF_THREADS)
def test_pool(name, programs):
    run(programs["pool"].result(), name)
