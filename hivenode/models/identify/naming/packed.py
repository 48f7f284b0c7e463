"""Quantized weights that pack several numbers into one stored integer: how many there really are."""

from __future__ import annotations

from hivenode.models.identify.formats import jsons
from hivenode.models.identify.formats.jsons import Json
from hivenode.models.identify.report import Confidence, Report, Tensor, count

_SIDE = (".qzeros", ".scales", ".g_idx", ".SCB", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map",
         ".weight_scale", ".weight_zero_point", ".input_scale", ".weight_scale_inv", ".weight_shape",
         ".weight_format")  # fmt: skip


def unpack(report: Report, settings: dict[str, Json]) -> None:
    """Replace the count of stored numbers by that of the weights they stand for.

    GPTQ and AWQ pack 32/bits weights into an int32 `qweight`, bitsandbytes two into a byte of `weight`;
    scales, zeros and tables are no parameters.
    """
    bits = jsons.whole(settings, "bits") or jsons.whole(settings, "w_bit") or 4
    if not 1 <= bits <= 32:
        return
    four = bool(settings.get("load_in_4bit") or settings.get("_load_in_4bit"))
    names = {tensor.name for tensor in report.listing}
    total = sum(
        _real(tensor, bits, four, names)
        for tensor in report.listing
        if tensor.shared_with is None and tensor.trainable is not False
    )
    report.know(Confidence.read, "quantization_config and the packed shapes", parameters=total)


def _real(tensor: Tensor, bits: int, four: bool, names: set[str]) -> int:
    if tensor.name.endswith(_SIDE) or ".quant_state." in tensor.name:
        return 0
    if tensor.name.endswith((".qweight", ".weight_packed")):
        return count(tensor.shape) * (32 // bits)
    if four and tensor.dtype == "uint8" and f"{tensor.name}.absmax" in names:
        return count(tensor.shape) * 2
    return count(tensor.shape)
