"""The benchmark prints what it says it does, and the fast memory step is the plain LSTM cell."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny import save_tiny
from torch import nn

from wm_agents.models.vmc import MDRNN

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_dream_products.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_dream_products", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_prints_speeds_ratio_and_drift(
    bench: ModuleType, tmp_path: Path, native_bf16: None, monkeypatch, capsys
) -> None:
    args = ["--model", save_tiny(tmp_path / "model"), "--rows", "3", "1024", "--seconds", "0.05", "--json"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *args])
    bench.main()
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [(row["rows"], row["type"]) for row in report["results"]] == [
        (num, precision) for num in (3, 1024) for precision in ("fp32", "bf16")
    ]
    assert all(row["dream_sps"] > 0 and row["bare_sps"] > 0 for row in report["results"])
    assert report["machine"]["threads"] == torch.get_num_threads() and "cpu" in report["machine"]
    assert "400,000" in err and "summed reward" in err and "50" in err


def test_without_a_stored_model_an_untrained_one_is_measured(bench: ModuleType, capsys) -> None:
    name, model, starts = bench.load("no-such-model")
    assert name == "untrained" and model.feat_dim == 288 and len(starts["begin"]["z"]) == 512
    assert "no-such-model" in capsys.readouterr().err


def test_rates_count_rows_of_both_functions_alike(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(bench, "time", type("Clock", (), {"perf_counter": lambda: clock[0]}))

    def takes(seconds: float) -> None:
        clock[0] += seconds

    assert bench.rates(lambda: takes(0.0625), lambda: takes(0.125), 10, 0.5) == [160, 80]


def test_the_memory_step_is_torch_s_cell_gradients_included() -> None:
    torch.manual_seed(0)
    memory, cell = MDRNN(5, 2, 16, 3), nn.LSTMCell(7, 16)
    cell.load_state_dict({key.removesuffix("_l0"): weight for key, weight in memory.rnn.state_dict().items()})
    z, act, h, c = (3 * torch.randn(9, dim) for dim in (5, 2, 16, 16))
    z.requires_grad_()
    got, want = memory.advance(z, act, h, c), cell(torch.cat([act, z], 1), (h, c))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    weights = (z, *memory.rnn.parameters()), (z, *cell.parameters())
    slopes = [torch.autograd.grad(sum(x.square().sum() for x in outs), ws) for outs, ws in zip((got, want), weights)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_memory_step_in_bf16_is_close_and_keeps_its_state_in_fp32() -> None:
    torch.manual_seed(0)
    memory = MDRNN(5, 2, 16, 3)
    parts = [torch.randn(9, dim) for dim in (5, 2, 16, 16)]
    want = memory.advance(*parts)
    with torch.autocast("cpu", torch.bfloat16):
        got = memory.advance(*parts)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=0.02, rtol=0.02)
        assert not torch.equal(a, b)
