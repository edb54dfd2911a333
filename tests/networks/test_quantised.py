# SPDX-License-Identifier: Apache-2.0
"""Linear layers in few bits: close to the whole ones, the same for few rows and many."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from monai_unimedvl.networks import quantised as q

CLOSE = {"int8": 0.01, "int4": 0.12, "nf4": 0.12}  # relative error of outputs, normal weights


def layer(outputs: int = 128, inputs: int = 96) -> nn.Linear:
    made = nn.Linear(inputs, outputs)
    nn.init.normal_(made.weight, std=0.05)
    return made


def distance(x: Tensor, y: Tensor) -> float:
    x, y = x.detach().float(), y.detach().float()
    return float((x - y).norm() / y.norm())


@pytest.mark.parametrize("kind", q.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 300])
def test_outputs_are_close_and_are_those_of_the_unpacked_weights(
    kind: str, dtype: torch.dtype, rows: int
) -> None:
    whole = layer()
    before = whole.weight.detach().clone()
    few = q.quantised(whole.weight, whole.bias, kind, dtype)
    assert torch.equal(whole.weight, before)  # it is mapped from a file: nobody may write to it
    x = torch.randn(2, rows, 96).to(dtype)
    y = few(x)
    assert y.shape == (2, rows, 128) and y.dtype == dtype
    assert distance(y, whole(x.float())) < CLOSE[kind]
    assert few.weight.shape == (128, 96) and (few.in_features, few.out_features) == (96, 128)
    own = x.float() @ few.weight.float().T + whole.bias
    assert distance(y, own) < (1e-6 if dtype == torch.float32 else 0.006)


@pytest.mark.parametrize("kind, share", [("int8", 0.27), ("int4", 0.17), ("nf4", 0.17)])
def test_the_memory_is_a_quarter_or_an_eighth(kind: str, share: float) -> None:
    few = q.quantised(layer(256, 256).weight, None, kind, torch.bfloat16)
    held = sum(x.nbytes for x in few.buffers() if x is not None)
    assert held <= share * 256 * 256 * 4


@pytest.mark.parametrize("kind", q.KINDS)
def test_without_torchs_kernels_the_numbers_stay(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, x = layer(), torch.randn(3, 96)
    with_kernel = q.quantised(whole.weight, whole.bias, kind, torch.float32)(x)
    monkeypatch.setattr(q, "_kernel", lambda *_: False)
    without = q.quantised(whole.weight, whole.bias, kind, torch.float32)(x)
    torch.testing.assert_close(with_kernel, without, atol=1e-5, rtol=1e-5)


def test_a_kernel_that_packs_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(q, "_from_kernel", lambda codes: torch.zeros(len(codes), 2 * codes.shape[1]))
    assert not q._kernel.__wrapped__("int4", "cpu", torch.float32)
    assert not q._kernel.__wrapped__("int8", "meta", torch.float32)


def test_gradients_reach_the_inputs() -> None:
    few = q.quantised(layer().weight, None, "int8", torch.float32)
    x = torch.randn(2, 96, requires_grad=True)
    few(x).sum().backward()
    torch.testing.assert_close(x.grad, few.weight.sum(0).expand(2, -1))


def test_layers_too_narrow_for_groups_take_int8_and_zero_rows_stay_zero() -> None:
    weight = torch.randn(16, 24)
    weight[3] = 0
    for kind in q.KINDS:
        few = q.quantised(weight, None, kind, torch.float32)
        assert few.kind == "int8" and not few.weight[3].any()
    flat = q.quantised(torch.full((64, 64), 0.25), None, "int4", torch.float32)
    torch.testing.assert_close(flat.weight, torch.full((64, 64), 0.25))


def test_what_cannot_be_quantised_is_said() -> None:
    with pytest.raises(ValueError, match=r"quantize='int2' is not known, expected one of int8, nf4, int4"):
        q.quantised(layer().weight, None, "int2", torch.float32)
    with pytest.raises(ValueError, match=r"torch.int64 of shape \(3,\), expected floats \(N, K\)"):
        q.quantised(torch.arange(3), None, "int8", torch.float32)


def test_the_libraries_of_cuda_are_called_as_they_want(monkeypatch: pytest.MonkeyPatch) -> None:
    class Built(nn.Linear):
        def __init__(self, inputs: int, outputs: int, bias: bool, **options: object) -> None:
            super().__init__(inputs, outputs, bias, device="meta")
            self.options = options

        def to(self, device: torch.device) -> Built:
            self.sent = device
            return self

    def parameter(x: Tensor, **options: object) -> nn.Parameter:
        made = nn.Parameter(x, requires_grad=False)
        made.options = options
        return made

    names = {"Linear8bitLt": Built, "Linear4bit": Built, "Int8Params": parameter, "Params4bit": parameter}
    library = SimpleNamespace(nn=SimpleNamespace(**names), __name__="bitsandbytes")
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    whole = layer()
    for kind, option in (("int8", {"has_fp16_weights": False}), ("nf4", {"quant_type": "nf4"})):
        built = q._bits_and_bytes(whole.weight, whole.bias, kind, torch.bfloat16)
        assert isinstance(built, Built) and option.items() <= built.options.items()
        assert torch.equal(built.weight, whole.weight) and built.bias.dtype == torch.bfloat16
        assert built.sent == whole.weight.device
