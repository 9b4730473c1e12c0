"""Fake-quantized modules to train with, and the reference modules they become: one set of numbers per scheme.

``prepare`` swaps classes inside a transformers model (nothing else of it changes, so Trainer conveniences,
hidden states and dynamic shapes keep working); ``convert`` replaces them by modules with explicit
quantize/dequantize operators, the canonical form of docs/architecture.md. Weights are quantized by one function
for both, so what was trained is what is shipped, bit for bit.

The patch embedding of a vision transformer is a convolution only by name: its kernels never overlap. It becomes a
linear layer, exactly. Any other convolution is refused, because it would stay in float and nobody would see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, TypeGuard

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
import torch.nn.functional as F
from torch import nn

from edgekd.errors import BadInput
from edgekd.quantize import scheme as schemes
from edgekd.quantize.scheme import Layer, Scheme

qd = torch.ops.quantized_decomposed
QMIN, QMAX = -128, 127  # activations: int8, affine
WMAX = 127  # weights: int8, symmetric, -128 unused
W4MIN, W4MAX = -8, 7  # weights: int4, zero point 0
BIAS_MAX = 2**30  # leaves the other half of the int32 accumulator to the products
SMALL_TABLE = 16  # embedding tables of at most so many rows stay in float (token types)


def weight_scale(weight_OI: torch.Tensor, top: int = WMAX) -> torch.Tensor:
    """Symmetric scale of each row, [O] float32: max |w| / ``top`` (a zero row gets the smallest normal step)."""
    raw = weight_OI.detach().float()
    largest_O = torch.maximum(raw.amax(1), raw.amin(1).neg())  # max |w| without a copy of the weights
    return (largest_O / top).clamp_min(torch.finfo(torch.float32).eps)


def quantize_weight(weight_OI: torch.Tensor, scale_O: torch.Tensor, top: int = WMAX) -> torch.Tensor:
    """Integers in [-top, top] as float32, rounded half to even."""
    return (weight_OI.detach().float() / scale_O[:, None]).round_().clamp_(-top, top)


def short(scale: torch.Tensor) -> torch.Tensor:
    """``scale`` (float32) in 8 significant bits: its products with int8, and these with 255, are exact.

    So the ends of a range give back scale and zero point, whoever divides them.
    """
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp((mantissa * 2**8).round(), exponent - 8)


def group_scale(weight_OI: torch.Tensor, group: int) -> torch.Tensor:
    """The int4 scale of every ``group`` inputs, [O, I / group] float32: max |w| / 7, so that nothing is cut."""
    return weight_scale(weight_OI.reshape(-1, group), W4MAX).reshape(len(weight_OI), -1)


def quantize_groups(weight_OI: torch.Tensor, scale_OG: torch.Tensor) -> torch.Tensor:
    """Integers in [-8, 7] as float32, [O, I], rounded half to even."""
    rows = weight_OI.detach().float().reshape(scale_OG.numel(), -1) / scale_OG.reshape(-1, 1)
    return rows.round_().clamp_(W4MIN, W4MAX).reshape(weight_OI.shape)


def dequantized(weight_q: torch.Tensor, scale_OG: torch.Tensor) -> torch.Tensor:
    """Integers [O, I] times the scales of their groups (one group: of their rows), float32."""
    return weight_q.float() * scale_OG.repeat_interleave(weight_q.shape[1] // scale_OG.shape[1], 1)


def linear_numbers(
    weight_OI: torch.Tensor, bias_O: torch.Tensor | None, in_scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The numbers of a quantized linear layer: integer weights [O, I], their scales [O], the bias [O], all float32.

    The bias is a multiple of ``in_scale * scale`` as the kernels add it (zeros where there is none). A row whose
    weights are so small beside its bias that the bias would not fit int32 gets the coarser scale that fits.
    """
    bias_O = weight_OI.new_zeros(len(weight_OI)) if bias_O is None else bias_O.detach()
    fits_O = (bias_O.double().abs() / (in_scale * BIAS_MAX)).float()
    scale_O = torch.maximum(weight_scale(weight_OI), fits_O)
    grid_O = in_scale * scale_O.double()
    return quantize_weight(weight_OI, scale_O), scale_O, ((bias_O.double() / grid_O).round() * grid_O).float()


class StraightThrough(torch.autograd.Function):
    """``rounded`` exactly, with the gradient of ``raw`` (Bengio et al. 2013, arXiv:1308.3432)."""

    @staticmethod
    def forward(ctx: object, raw: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        return rounded.detach()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient, None


class FakeQuantize(torch.autograd.Function):
    """``x`` in int8 steps of ``scale`` from ``zero`` (both [1]), and back; gradients as in LSQ+ (arXiv:2004.09576).

    Those of ``scale`` and ``zero`` are multiplied by ``factor``. It is PyTorch's learnable fake-quantize, whose kernel
    is not vectorized and takes ten times as long. Where the zero point is negative PyTorch's gradients are those of a
    range one step lower, and so are these: students trained with the plain equations came out worse (docs/log.md).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, factor: float) -> torch.Tensor:
        step, at = scale.item(), zero.round().clamp(QMIN, QMAX).item()
        behind = int((zero + 0.5).clamp(QMIN, QMAX).item())  # towards zero
        ctx.save_for_backward(x)
        ctx.step, ctx.low, ctx.high, ctx.factor = step, QMIN - behind, QMAX - behind, factor
        return x.mul(1 / step).round_().clamp_(QMIN - at, QMAX - at).mul_(step)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        exact = x * (1 / ctx.step)
        steps = exact.round()
        clipped = steps.clamp(ctx.low, ctx.high)
        inside = steps.eq_(clipped)  # 1.0 or 0.0
        of_x = gradient * inside
        of_scale = clipped.addcmul_(exact, inside, value=-1).mul_(gradient).sum()
        of_zero = torch.sub(gradient, of_x, out=exact).sum() * -ctx.step
        return of_x, (of_scale * ctx.factor).reshape(1), (of_zero * ctx.factor).reshape(1), None


class Observer(Protocol):
    """Sees every tensor that reaches a quantizer during calibration."""

    def add(self, x: torch.Tensor) -> None: ...


class ActivationQuantizer(nn.Module):
    """Static affine int8 fake-quantizer of one tensor, with learned scale and zero point (LSQ+, arXiv:2004.09576).

    ``log_scale`` and ``zero_point`` have shape [1]. While it has an ``observer`` it passes its input through.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.zero_point = nn.Parameter(torch.zeros(1))
        self.observer: Observer | None = None

    def set_range(self, low: float, high: float) -> None:
        """Cover [low, high] and zero with 255 steps."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / (QMAX - QMIN), 1e-8)
        with torch.no_grad():
            self.log_scale.fill_(scale).log_()
            self.zero_point.fill_(min(max(round(QMIN - low / scale), QMIN), QMAX))

    def _scale(self) -> torch.Tensor:
        scale = self.log_scale.exp()
        return StraightThrough.apply(scale, short(scale.detach()))

    def numbers(self) -> tuple[float, int]:
        """Scale (a float32 value: every runtime stores that) and zero point, as they are shipped."""
        return float(self._scale().detach()), int(self.zero_point.detach().round().clamp(QMIN, QMAX))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.observer is not None:
            self.observer.add(x)
            return x
        factor = 1.0 / (x.numel() * QMAX) ** 0.5  # gradient scale of LSQ (arXiv:1902.08153, section 2.2)
        found: torch.Tensor = FakeQuantize.apply(x, self._scale(), self.zero_point, factor)
        return found


def token_numbers(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps per unit (the reciprocal of a scale) and zero point of each token of ``x`` [..., I], both [..., 1] float32.

    As XNNPACK chooses them (``xnn_f32_qd8_asymmetric_quantization_params`` in its microparams-init): the range covers
    zero, and the zero point is rounded from the end where it errs less.
    """
    low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
    steps = torch.where(low == high, 1.0, torch.full_like(low, QMAX - QMIN) / (high - low))  # one rounding
    at_low, at_high = low * steps, high * steps
    zero = torch.where((QMIN + at_low) + (QMAX + at_high) > 0, QMIN - at_low, QMAX - at_high)
    return steps, zero.clamp(QMIN, QMAX).round()


def quantize_tokens(x: torch.Tensor, steps: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """int8 integers as float32, rounded half to even."""
    return (x * steps).round_().add_(zero).clamp_(QMIN, QMAX)


class Smoothed(nn.Linear):
    """A linear layer whose inputs are multiplied by ``smooth`` [I], powers of two, first (``smooth.py``)."""

    smooth: torch.Tensor | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(smoothed(self, x))


def smoothed(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``x`` as a layer reads it."""
    factor = getattr(layer, "smooth", None)
    return x if factor is None else x * factor


class QATLinear(nn.Linear):
    """A linear layer in training, with the numbers that its ``kind`` will ship.

    Scales that were chosen before (``weights.py``: those of int4 groups, and of int8 rows by GPTQ) stay; those of other
    int8 weights follow the weights.
    """

    kind: Layer
    w_scale: torch.Tensor  # [O, I / group]; [O] of int8 rows; only where it was chosen
    any_scale = True  # whether int8 rows may have any scale, as a library chooses it
    bypassed = False  # computes as the float layer it was (sensitivity is measured one layer at a time)
    input_quantizer: ActivationQuantizer  # static layers only
    output_quantizer: ActivationQuantizer  # static layers with a quantized output only

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = smoothed(self, x)
        if self.bypassed:
            return F.linear(x, self.weight, self.bias)
        if self.kind.activations == "static":
            return self._static(x)
        return F.linear(*self.operands(x), self.bias)

    def operands(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``x`` and the weights [O, I] as the shipped layer multiplies them (no static activations); gradients pass."""
        if self.kind.activations == "dynamic":
            steps, zero = token_numbers(x.detach())
            x = StraightThrough.apply(x, quantize_tokens(x.detach(), steps, zero).sub_(zero).mul_(1 / steps))
        return x, StraightThrough.apply(self.weight, self._dequantized())

    def _static(self, x: torch.Tensor) -> torch.Tensor:
        x = self.input_quantizer(x)
        if self.input_quantizer.observer is not None:  # calibration sees the float model
            return self._output(F.linear(x, self.weight, self.bias))
        weight_q, scale_O, bias_O = linear_numbers(self.weight, self.bias, self.input_quantizer.numbers()[0])
        weight_OI = StraightThrough.apply(self.weight, weight_q.mul_(scale_O[:, None]))
        if self.bias is not None:
            bias_O = StraightThrough.apply(self.bias, bias_O)
        return self._output(F.linear(x, weight_OI, bias_O))

    def _output(self, y: torch.Tensor) -> torch.Tensor:
        return self.output_quantizer(y) if self.kind.output else y

    def _dequantized(self) -> torch.Tensor:
        """The weights as they are shipped, in float32."""
        if self.kind.weight_bits == 16:
            return self.weight.detach().half().float()
        if self.kind.group:
            return dequantized(quantize_groups(self.weight, self.w_scale), self.w_scale)
        scale_O = self.row_scale()
        return quantize_weight(self.weight, scale_O).mul_(scale_O[:, None])

    def row_scale(self) -> torch.Tensor:
        """Scales of int8 rows, [O]."""
        return self.w_scale if "w_scale" in self._buffers else weight_scale(self.weight)


class QATEmbedding(nn.Embedding):
    """An embedding table in training, int8 by row or half; only the rows in use are rounded: the same, cheaper."""

    bits: int

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = super().forward(ids)
        if self.bits == 16:
            return StraightThrough.apply(rows, rows.detach().half().float())
        flat = rows.detach().reshape(-1, rows.shape[-1])
        scale = weight_scale(flat)
        return StraightThrough.apply(rows, (quantize_weight(flat, scale) * scale[:, None]).reshape_as(rows))


class PatchLinear(nn.Module):
    """A convolution whose kernels tile the image without overlap, as a linear layer of each patch: the same sums."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.patch_height, self.patch_width = convolution.kernel_size
        weight_OI = convolution.weight.detach().flatten(1)
        self.linear = nn.Linear(weight_OI.shape[1], len(weight_OI), bias=convolution.bias is not None)
        self.linear.weight = nn.Parameter(weight_OI.clone())
        if convolution.bias is not None:
            self.linear.bias = convolution.bias

    @property
    def weight(self) -> torch.Tensor:
        """Model code casts the pixels to ``.weight.dtype``."""
        return self.linear.weight

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, O, H / patch height, W / patch width]; no step has more than five axes (Core ML)."""
        batch, channels, height, width = pixels_BCHW.shape
        rows, columns = height // self.patch_height, width // self.patch_width
        bands = pixels_BCHW.reshape(batch, channels, rows, self.patch_height, width).transpose(1, 2)
        tiles = bands.reshape(batch, rows, channels * self.patch_height, columns, self.patch_width).transpose(2, 3)
        patches_BPI = tiles.reshape(batch, rows * columns, channels * self.patch_height * self.patch_width)
        found: torch.Tensor = self.linear(patches_BPI).transpose(1, 2).reshape(batch, -1, rows, columns)
        return found


class ReferenceLinear(nn.Module):
    """The canonical form of one linear layer (docs/architecture.md): folded integer or half weights, and operators that
    say what happens to its activations."""

    def __init__(self, layer: QATLinear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.kind = layer.in_features, layer.out_features, layer.kind
        bias = None if layer.bias is None else layer.bias.detach().clone()
        if self.kind.activations == "static":
            self.in_scale, self.in_zero = layer.input_quantizer.numbers()
            if self.kind.output:
                self.out_scale, self.out_zero = layer.output_quantizer.numbers()
            weight_q, scale, bias = linear_numbers(layer.weight, layer.bias, self.in_scale)
        elif self.kind.weight_bits == 16:
            weight_q, scale = layer.weight.detach().half(), None
        elif self.kind.group:
            weight_q, scale = quantize_groups(layer.weight, layer.w_scale), layer.w_scale.clone()
        else:
            scale = layer.row_scale().clone()
            weight_q = quantize_weight(layer.weight, scale)
        self.register_buffer("weight_q", weight_q if scale is None else weight_q.to(torch.int8))
        if scale is not None:
            self.register_buffer("w_scale", scale)
            self.register_buffer("w_zero", torch.zeros(scale.shape, dtype=torch.int64))
        self.register_buffer("bias", bias)
        self.register_buffer("smooth", getattr(layer, "smooth", None))

    @property
    def weight(self) -> torch.Tensor:
        """Some model code looks at ``.weight.dtype`` or its device; it gets a float32 tensor."""
        return self.w_scale if self.kind.weight_bits < 16 else self.weight_q.float()  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = smoothed(self, x)
        if self.kind.activations == "static":
            x = _through_int8(x, self.in_scale, self.in_zero)
        elif self.kind.activations == "dynamic":
            x = _through_tokens(x)
        y = F.linear(x, self._weight(), self.bias)
        return _through_int8(y, self.out_scale, self.out_zero) if self.kind.output else y

    def _weight(self) -> torch.Tensor:
        if self.kind.weight_bits == 16:
            return self.weight_q.to(torch.float32)  # type: ignore[operator]
        if self.kind.group:
            return qd.dequantize_per_channel_group(
                self.weight_q, self.w_scale, self.w_zero, W4MIN, W4MAX, torch.int8, self.kind.group, torch.float32
            )
        return qd.dequantize_per_channel(self.weight_q, self.w_scale, self.w_zero, 0, -WMAX, WMAX, torch.int8)


def _through_tokens(x: torch.Tensor) -> torch.Tensor:
    """int8 and back, with a scale for each token: the operators by which exporters know the pattern.

    They compute in float64 what kernels compute in float32: ``token_numbers`` is what counts, see ``integer.py``.
    """
    scale, zero = qd.choose_qparams_per_token_asymmetric(x, torch.int8)
    q = qd.quantize_per_token(x, scale, zero, QMIN, QMAX, torch.int8)
    return qd.dequantize_per_token(q, scale, zero, QMIN, QMAX, torch.int8, torch.float32)


def _through_int8(x: torch.Tensor, scale: float, zero: int) -> torch.Tensor:
    q = qd.quantize_per_tensor(x, scale, zero, QMIN, QMAX, torch.int8)
    return qd.dequantize_per_tensor(q, scale, zero, QMIN, QMAX, torch.int8)


class ReferenceEmbedding(nn.Module):
    """Rows gathered, cast, multiplied by their scale (halves have none): plain operators that every exporter knows."""

    def __init__(self, table: QATEmbedding) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.bits = table.num_embeddings, table.embedding_dim, table.bits
        if self.bits == 16:
            self.register_buffer("weight_q", table.weight.detach().half())
            return
        scale_V = weight_scale(table.weight)
        self.register_buffer("weight_q", quantize_weight(table.weight, scale_V).to(torch.int8))
        self.register_buffer("w_scale", scale_V[:, None].clone())

    @property
    def weight(self) -> torch.Tensor:
        """Some model code asks ``.weight`` for its number of rows; it gets a float tensor of so many."""
        return self.weight_q if self.bits == 16 else self.w_scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = F.embedding(ids, self.weight_q).to(torch.float32)
        return rows if self.bits == 16 else rows * F.embedding(ids, self.w_scale)


def prepare(model: nn.Module, scheme: Scheme = schemes.SCHEMES["w8a8"]) -> nn.Module:
    """Swap every linear layer and every larger embedding table for its QAT class, in place; no dropout from here on.

    Raises BadInput for a convolution that is no patch embedding.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            if not _tiles(module):
                raise BadInput(f"'{name}' is a convolution, which cannot be {scheme.name} yet", todo="fp32 works.")
            model.set_submodule(name, PatchLinear(module))
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    for name, module in model.named_modules():
        if type(module) in (nn.Linear, Smoothed):
            kind = scheme.layer(name, module.in_features, module.out_features, width)
            if type(module) is Smoothed and kind.activations != "static":
                _fold_back(module)
            if kind.weight_bits == 32:
                continue
            module.__class__ = QATLinear
            module.kind = kind
            if kind.group:
                module.register_buffer("w_scale", group_scale(module.weight, kind.group))
            if kind.activations == "static":
                module.input_quantizer = ActivationQuantizer()
            if kind.output:
                module.output_quantizer = ActivationQuantizer()
        elif type(module) is nn.Embedding and module.num_embeddings > SMALL_TABLE:
            module.__class__ = QATEmbedding
            module.bits = scheme.embedding_bits
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def _fold_back(layer: Smoothed) -> None:
    """The plain layer that this one was: its weights multiply as ``smooth`` does, exactly."""
    with torch.no_grad():
        layer.weight.mul_(layer.smooth)
    del layer.smooth
    layer.__class__ = nn.Linear


def _tiles(convolution: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether each pixel is read by one kernel position, and by all channels."""
    return (
        isinstance(convolution, nn.Conv2d)
        and tuple(convolution.kernel_size) == tuple(convolution.stride)
        and convolution.padding in ((0, 0), "valid")
        and tuple(convolution.dilation) == (1, 1)
        and convolution.groups == 1
    )


def share_inputs(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """Give layers that read the same tensor (query, key, value) one input quantizer: one scale, one rounding."""
    readers: dict[int, list[QATLinear]] = {}
    alive: list[torch.Tensor] = []  # keeps every input alive for this pass, so that no id is used twice

    def note(layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        alive.append(arguments[0])
        readers.setdefault(id(arguments[0]), []).append(layer)  # type: ignore[arg-type]

    hooks = [layer.register_forward_pre_hook(note) for _, layer in layers(model) if layer.kind.activations == "static"]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    for group in readers.values():
        for layer in group[1:]:
            layer.input_quantizer = group[0].input_quantizer


def convert(model: nn.Module) -> nn.Module:
    """Replace the QAT modules by their reference modules, in place; the result is in eval mode, without gradients."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QATLinear):
            model.set_submodule(name, ReferenceLinear(module))
        elif isinstance(module, QATEmbedding):
            model.set_submodule(name, ReferenceEmbedding(module))
    return model.eval().requires_grad_(False)


def layers(model: nn.Module) -> Iterator[tuple[str, QATLinear]]:
    """The quantized linear layers by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QATLinear))


def described(name: str, layer: QATLinear) -> dict[str, object]:
    """What the manifest says of a layer: its kind, and scale and zero point of static activations."""
    facts: dict[str, object] = {"name": name, "kind": layer.kind.name}
    if layer.kind.group:
        facts["group"] = layer.kind.group
    if layer.kind.activations == "static":
        facts["input"] = layer.input_quantizer.numbers()
    if layer.kind.output:
        facts["output"] = layer.output_quantizer.numbers()
    return facts


def quantizers(model: nn.Module) -> Iterator[ActivationQuantizer]:
    """Every activation quantizer once."""
    return (module for module in model.modules() if isinstance(module, ActivationQuantizer))
