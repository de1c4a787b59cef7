"""What the engine refuses, and what the disk may do to it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.support import QUADS, Shape, both_engines, random_arrays
from vqdistill import _native
from vqdistill.kernels import Engine, available_levels

ARRAYS = random_arrays(Shape())
NAMES = ["list_offsets", "router", "coarse", "mean", "rotation", "codewords", "packed"]
SEARCH = {"k": 3, "nprobe": 2, "refine": 0, "threads": 1}


def engine(**changes):
    return Engine(**(ARRAYS | changes))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_dtype_or_layout_is_a_type_error(name):
    array = ARRAYS[name]
    unaligned = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    wrong = [array.astype(np.float64), array.tolist(), None, np.repeat(array, 2, axis=-1)[..., ::2]]
    for bad in wrong + [unaligned] * (array.itemsize > 1):
        with pytest.raises(TypeError, match=f"^{name} must be .*, got "):
            engine(**{name: bad})


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shape_is_a_value_error(name):
    for bad in (ARRAYS[name][None], ARRAYS[name][:-1], ARRAYS[name][:0]):
        with pytest.raises(ValueError, match=" must be .*, got "):
            engine(**{name: bad.copy()})


ADAPTER = (np.zeros((3, 12), np.float32), np.zeros(3, np.float32), np.zeros((12, 3), np.float32), 2, True)


@pytest.mark.parametrize("name", ["query_adapter", "verify_adapter"])
@pytest.mark.parametrize(
    ("place", "value", "error", "message"),
    [
        (0, np.zeros((3, 11), np.float32), ValueError, r"down must be \(units, d\) float32 or float16, got"),
        (0, np.zeros((3, 12), np.float64), TypeError, "down must be"),
        (0, np.zeros((0, 12), np.float32), ValueError, "must be"),
        (1, np.zeros(2, np.float32), ValueError, r"bias must be \(units,\) float32, got"),
        (1, np.zeros(3, np.float16), TypeError, "bias must be"),
        (2, np.zeros((3, 12), np.float32), ValueError, r"up must be \(d, units\) float32 or float16, got"),
        (3, 4, ValueError, r"rank must be in 0\.\.3, got 4"),
        (3, -1, ValueError, r"rank must be in 0\.\.3, got -1"),
        (3, 1.0, TypeError, "must end in an integer rank and a bool"),
        (4, None, TypeError, "must end in an integer rank and a bool"),
    ],
)
def test_an_adapter_that_does_not_fit(name, place, value, error, message):
    parts = list(ADAPTER)
    engine(**{name: tuple(parts)})
    parts[place] = value
    with pytest.raises(error, match=f"^{name}.*{message}"):
        engine(**{name: tuple(parts)})


@pytest.mark.parametrize("value", [list(ADAPTER), ADAPTER[:4], 3])
def test_an_adapter_is_a_tuple_of_five(value):
    with pytest.raises(ValueError, match=r"query_adapter must be \(down, bias, up, rank, unit\) or None, got"):
        engine(query_adapter=value)


@pytest.mark.parametrize("offsets", [[0, 10, 5, 20, 30, 40, 500], [1, 2, 3, 4, 5, 6, 500], [0, 0, 0, 0, 0, 0, 600]])
def test_offsets_that_would_read_foreign_memory(offsets):
    with pytest.raises(ValueError, match="must be"):
        engine(list_offsets=np.array(offsets, np.int64))


@pytest.mark.parametrize("m", [1, 3, 258])
def test_m_out_of_range(m):
    with pytest.raises(ValueError, match=r"m must be even and in 2\.\.256"):
        engine(
            codewords=np.zeros((m, 16, 1), np.float32),
            rotation=np.zeros((m, 12), np.float32),
            packed=np.zeros((16, m // 2, 32), np.uint8),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "cosine"}, "metric must be ip or l2, got cosine"),
        ({"metric": "l2", "residual": True}, "residual must be False for metric l2, got True"),
        ({"metric": "l2", "rotation": np.zeros((0, 12), np.float32)}, "additive codewords must be"),
        ({"rotation": np.zeros((0, 12), np.float32)}, r"additive codewords must be \(m, 16, d\) for metric ip, got"),
        ({"dense_dtype": "f64"}, "dense_dtype must be one of f32, f16, bf16, i8, none, got f64"),
        ({"dense_dtype": "f16"}, "dense_fd must be an open file descriptor, got -1"),
        ({"dense_offset": -1}, "dense_offset must be at least 0, got -1"),
    ],
)
def test_wrong_option_of_the_engine(changes, message):
    with pytest.raises(ValueError, match=message):
        engine(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k must be in 1.*got 0"),
        ({"nprobe": 0}, r"nprobe must be in 1\.\.6, got 0"),
        ({"nprobe": 7}, r"nprobe must be in 1\.\.6, got 7"),
        ({"refine": -1}, "refine must be in 0.*got -1"),
        ({"refine": 1}, "refine must be 0 without dense rows, got 1"),
        ({"threads": 0}, r"threads must be in 1\.\.1024, got 0"),
        ({"threads": 1025}, r"threads must be in 1\.\.1024, got 1025"),
    ],
)
def test_wrong_option_of_a_search(changes, message):
    with pytest.raises(ValueError, match=message):
        engine().search(np.zeros((2, 12), np.float32), **(SEARCH | changes))


@pytest.mark.parametrize(
    ("queries", "error"),
    [
        (np.zeros((2, 12)), TypeError),
        (np.zeros((12, 2), np.float32).T, TypeError),
        ([[0.0] * 12], TypeError),
        (np.zeros((2, 11), np.float32), ValueError),
        (np.zeros(12, np.float32), ValueError),
    ],
)
def test_wrong_queries(queries, error):
    with pytest.raises(error, match=r"queries must be \(q, 12\) float32, got "):
        engine().search(queries, **SEARCH)


@pytest.mark.parametrize("threads", [1, 3])
def test_closed_file_is_an_os_error(tmp_path, threads):
    shape = Shape(dense_dtype="f16")
    queries = np.ones((50, shape.d), np.float32)
    with both_engines(shape, tmp_path) as (native, _):
        pass
    with pytest.raises(OSError, match="cannot read dense rows") as caught:
        native.search(queries, **(SEARCH | {"refine": 10, "threads": threads}))
    assert caught.value.errno == errno.EBADF
    assert native.search(queries, **SEARCH)[1].min() >= 0, "a search of the codes still works afterwards"


def test_directory_instead_of_a_file_is_an_os_error(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(IsADirectoryError):
            engine(dense_fd=fd, dense_dtype="f32").search(np.ones((1, 12), np.float32), **(SEARCH | {"refine": 5}))
    finally:
        os.close(fd)


@pytest.mark.parametrize("missing", [1, 500, 20_000])
def test_file_that_ends_early_is_an_os_error(tmp_path, missing):
    shape = Shape(dense_dtype="f32")
    with both_engines(shape, tmp_path) as (native, _):
        path = tmp_path / "dense"
        os.truncate(path, path.stat().st_size - missing)
        with pytest.raises(OSError, match="dense rows end early") as caught:
            native.search(np.ones((3, 12), np.float32), k=500, nprobe=6, refine=500, threads=1)
    assert caught.value.errno == errno.EIO


def import_with(level):
    code = "from vqdistill.kernels import cpu_level; print(cpu_level())"
    environment = os.environ | {"VQDISTILL_CPU": level}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("level", available_levels())
def test_forced_level_is_the_one_that_runs(level):
    assert import_with(level).stdout.strip() == level


def test_best_level_runs_by_default():
    assert import_with("").stdout.strip() == available_levels()[-1]
    assert available_levels()[0] == "scalar"
    assert _native.cpu_level() in available_levels()


@pytest.mark.parametrize("level", ["mmx", "AVX2", "scalar "])
def test_unknown_level_stops_the_import(level):
    failed = import_with(level)
    assert failed.returncode != 0
    assert "VQDISTILL_CPU: CPU level must be one that runs on this machine (scalar" in failed.stderr
    assert f"got '{level}'" in failed.stderr


@pytest.mark.parametrize("shape", [(15, 4, 32), (16, 8, 32), (15, 1, 32, 4), (16, 2, 32, 4)])
def test_codes_of_other_rows(shape):
    with pytest.raises(ValueError, match="packed must be the blocks of 500 rows of 8 codes, got"):
        engine(packed=np.zeros(shape, np.uint8))


@pytest.mark.parametrize("level", sorted(set(available_levels()) - QUADS))
def test_level_that_scans_no_quads(level):
    code = (
        "import numpy as np; from tests.kernels.support import Shape, random_arrays\n"
        "from vqdistill.kernels import Engine\n"
        "arrays = random_arrays(Shape(n=500, m=8))\n"
        "arrays['packed'] = np.zeros((16, 1, 32, 4), np.uint8)\n"
        "try: Engine(**arrays)\n"
        "except ValueError as error: print(error)\n"
    )
    env = os.environ | {"VQDISTILL_CPU": level}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=env, capture_output=True, check=True
    )
    assert (
        said.stdout.decode() == f"packed must be (nblocks, m / 2, 32) at CPU level {level}, got (16, 1, 32, 4) uint8\n"
    )


def test_forced_level_gives_the_same_results(tmp_path):
    """Small integers are exact on every level, so whole searches agree between processes that force one."""
    code = (
        "import sys\n"
        "import numpy as np; from tests.kernels.support import Shape, random_arrays, small_integers\n"
        "from vqdistill.kernels import Engine, scan_order\n"
        "shape = Shape(n=3000, m=64, dsub=1, d=33)\n"
        "arrays = random_arrays(shape)\n"
        "arrays['packed'] = scan_order(arrays['packed'])\n"
        "queries = small_integers(np.random.default_rng(5), 20, 33)\n"
        "found = Engine(**arrays).search(queries, k=50, nprobe=3, refine=0, threads=1)\n"
        "sys.stdout.buffer.write(b''.join(part.tobytes() for part in found))\n"
    )
    answers = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"VQDISTILL_CPU": level},
            capture_output=True,
            check=True,
        ).stdout
        for level in available_levels()
    ]
    assert len(answers[0]) == 20 * 50 * 12 + 20 * 7 * 8 and len(set(answers)) == 1
