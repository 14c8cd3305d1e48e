"""Cards by name: how much they hold and how fast they are."""

import math
import re
from dataclasses import dataclass, replace

from xtuner.errors import UserError, did_you_mean

GIB = 2**30

MATMUL_SHARE = 0.766
"""Share of a card's stated rate that matrix products of very many rows reach: 757 of 989 TFLOP/s on an H200."""
FP8_SHARE = 0.72
"""The same for FP8 with scales by row: 1,430 of 1,979 TFLOP/s."""
ATTENTION_SHARES = (0.30, 0.25)
"""The same for FlashAttention 2, forward and backward: 300 and 250 of 989 TFLOP/s."""
ALIKE_SHARES = (0.50, 0.41)
"""The same for cuDNN's kernels, which need segments of one length and Hopper: 72 ms for 8 192 tokens of 8B."""
BANDWIDTH_SHARE = 0.9
"""The same for memory: 4.3 of 4.8 TB/s."""
REPORTED = 0.98
"""Share of the memory in a card's name that programs can see."""
NEAR = 0.15
"""A size that differs by no more from a row's is that row's: of 24 GB programs see 22 to 23.6."""
SIZE = re.compile(r"(\d{1,3}(?:\.\d+)?|\d{4,7}(?=\s*m))\s*(g|gb|gib|mb|mib)?", re.IGNORECASE)
"""A size alone: without a unit it is in GB, and 4090 is none."""
SIZE_INSIDE = re.compile(r"(?<![a-z0-9.])(\d{1,3})\s*(?:gb|gib|g)\b", re.IGNORECASE)
"""A size beside a name."""
WORDS_AROUND = re.compile(r"\b(nvidia|geforce|tesla|quadro|gpu|sxm\d?|hbm\d?e?|generation)\b|[^a-z0-9]")
"""What drivers and shops write beside a name."""


@dataclass(frozen=True)
class Card:
    """What a run is planned for. Rates are those that are reached, in FLOP/s and bytes/s."""

    name: str
    memory: float
    """Bytes that are free for the run."""
    matmul: float
    """Rate of products in the format that is computed in."""
    fp8: float
    """Rate of FP8 products; 0: the card has none with scales by row."""
    attention: tuple[float, float]
    """Rate of the attention kernels, forward and backward."""
    attention_alike: tuple[float, float]
    """The same when all segments have one length."""
    bandwidth: float
    has_bfloat16: bool = True
    is_cpu: bool = False
    host: float = math.inf
    """Bytes of host memory that are free for the run, where that is known."""
    count: int = 1
    """So many of them share the run."""
    rates_of: str = ""
    """The card whose rates are taken because nobody knows those of this one."""

    @property
    def host_bandwidth(self) -> float:
        """Bytes a second between card and pinned host memory: PCIe 5 (53 GB/s on an H200) beside memory that is as new,
        else PCIe 4."""
        return 50e9 if self.bandwidth > 2.5e12 else 22e9


@dataclass(frozen=True)
class _Row:
    """GiB, TFLOP/s for bf16 (fp16 where there is none) with fp32 sums and no sparsity, the same for FP8, GB/s."""

    gib: float
    tflops: float
    gbytes: float
    fp8: float = 0.0
    has_bfloat16: bool = True


# From the makers' data sheets; FP8 only where scales by row are multiplied (compute capability 9.0 and later).
_ROWS: dict[str, _Row] = {
    "V100": _Row(31.7, 112, 900, has_bfloat16=False),
    "T4": _Row(14.6, 65, 320, has_bfloat16=False),
    "RTX 2080 Ti": _Row(10.8, 54, 616, has_bfloat16=False),
    "RTX 3060": _Row(11.8, 25, 360),
    "RTX 3070": _Row(7.8, 41, 448),
    "RTX 3080": _Row(9.8, 60, 760),
    "RTX 3090": _Row(23.6, 71, 936),
    "RTX 4060": _Row(7.8, 30, 272),
    "RTX 4070": _Row(11.7, 58, 504),
    "RTX 4080": _Row(15.7, 97, 717),
    "RTX 4090": _Row(23.6, 165, 1008),
    "RTX 5070": _Row(11.7, 62, 672),
    "RTX 5080": _Row(15.6, 112, 960),
    "RTX 5090": _Row(31.4, 209, 1792),
    "RTX A6000": _Row(47.4, 155, 768),
    "RTX 6000 Ada": _Row(47.5, 182, 960),
    "A10": _Row(22.0, 125, 600),
    "A10G": _Row(22.0, 70, 600),
    "A30": _Row(23.6, 165, 933),
    "A40": _Row(44.3, 150, 696),
    "L4": _Row(22.0, 60, 300),
    "L40": _Row(44.4, 181, 864),
    "L40S": _Row(44.4, 181, 864),
    "A100 40GB": _Row(39.4, 312, 1555),
    "A100 80GB": _Row(79.2, 312, 2039),
    "A800": _Row(79.2, 312, 2039),
    "H20": _Row(95.0, 148, 4000, 296),
    "H100": _Row(79.1, 989, 3350, 1979),
    "H100 PCIe": _Row(79.1, 756, 2000, 1513),
    "H800": _Row(79.1, 989, 3350, 1979),
    "H200": _Row(139.8, 989, 4800, 1979),
    "B200": _Row(178.0, 2250, 8000, 4500),
}
# a size alone says nothing of speed: a card of today that has it, or more, and is not the fastest of them
_TYPICAL = {8: "RTX 4060", 12: "RTX 3060", 16: "RTX 4080", 24: "RTX 3090", 32: "RTX 5090", 48: "RTX A6000"}
_TYPICAL |= {40: "A100 40GB", 80: "A100 80GB", 96: "H20", 144: "H200", 192: "B200"}


def find_card(word: str) -> Card:
    """Return the card that `word` names: `H200`, `4090`, `a100-40g`, `Tesla T4`, or only a size: `8GB`, `8192MB`, `8`.

    Raises:
        UserError: there is none of that name; names the nearest (exit code 2).
    """
    if word.strip().lower() == "cpu":
        raise UserError("Only the CPU that is here can be timed.", "Leave --gpu out on a machine without a card.", 2)
    if size := SIZE.fullmatch(word.strip()):
        gib = float(size[1]) / (1024 if (size[2] or "").lower().startswith("m") else 1)
        return _card_of_size(gib, word.strip())
    sizes = [float(number) for number in SIZE_INSIDE.findall(word)]
    asked = "".join(WORDS_AROUND.sub(" ", SIZE_INSIDE.sub(" ", word.lower())).split())
    plain = _plain(asked)
    found = [name for name in _ROWS if plain and plain in (_bare(name), _plain(name), f"rtx{_bare(name)}")]
    found = found or [name for name in _ROWS if _plain(word) == _plain(name)]  # `a10040gb`
    if not found:
        hint = did_you_mean(word, _ROWS)
        raise UserError(
            f"There is no card {word or 'without a name'} in the table.",
            f"{hint} Any card can be given by its memory: --gpu 24GB".strip(),
            exit_code=2,
        )
    if not sizes:
        # `A100`: the first row is the smaller one, so nothing is promised that only the larger one holds
        return _card(found[0])
    best = min(found, key=lambda name: abs(_ROWS[name].gib - sizes[0]))
    if abs(_ROWS[best].gib / sizes[0] - 1) <= NEAR:
        return _card(best)
    return replace(_card(best), name=f"{best} with {sizes[0]:g} GB", memory=_memory(sizes[0], word))


def find_cards(word: str) -> Card:
    """Return the card that `word` names, and how many of them: `8xA100`; without a number it is one.

    Raises:
        UserError: there is none of that name (exit code 2).
    """
    count = re.fullmatch(r"([1-9]\d{0,3})\s*[x*]\s*(\S.*)", word.strip(), re.IGNORECASE)
    return replace(find_card(count[2]), count=int(count[1])) if count else find_card(word)


def match_card(device: str, memory: float) -> Card:
    """Return the card that a driver calls `device` (`NVIDIA H200`), with `memory` bytes free for the run.

    One that is not in the table gets the rates of a usual card of its size, and says so.
    """
    inside = [name for name in _ROWS if _is_inside(name, device)]
    if inside:
        longest = max(len(_bare(name)) for name in inside)  # L40S is no L40
        twins = [name for name in inside if len(_bare(name)) == longest]
        best = min(twins, key=lambda name: abs(_ROWS[name].gib * GIB - memory))
        return replace(_card(best), name=device, memory=memory)
    return replace(_card_of_size(max(memory / GIB, 1), device), name=device, memory=memory)


def _bare(name: str) -> str:
    """`A100 80GB` -> `a100`, `RTX 4090` -> `4090`: what a driver's name has in it."""
    return re.sub(r"(40|80)gb$", "", _plain(name)).removeprefix("rtx")


def _is_inside(name: str, device: str) -> bool:
    """Whether a driver's name has that of a row in it, with no further digit: L40 is no L4."""
    words = re.sub(r"^RTX | (40|80)GB$", "", name).split()
    return re.search("[^a-z0-9]*".join(words) + r"(?!\d)", device, re.IGNORECASE) is not None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower().replace("nvidia", "").replace("geforce", ""))


def _memory(gib: float, name: str) -> float:
    """Bytes that programs see of a card with a size in its name."""
    if not 1 <= gib <= 1024:
        raise UserError(f"{name} is no size of a card.", "Give for example --gpu 24GB.", exit_code=2)
    return gib * REPORTED * GIB


def _card_of_size(gib: float, name: str) -> Card:
    memory = _memory(gib, name)
    typical = _TYPICAL[min(_TYPICAL, key=lambda size: abs(size - gib))]
    return replace(_card(typical), name=f"a card with {gib:g} GB", memory=memory, rates_of=typical)


def _card(name: str) -> Card:
    row = _ROWS[name]
    flops = row.tflops * 1e12
    alike = ALIKE_SHARES if row.fp8 else ATTENTION_SHARES  # the same generations have both
    return Card(
        name=name,
        memory=row.gib * GIB,
        matmul=flops * MATMUL_SHARE,
        fp8=row.fp8 * 1e12 * FP8_SHARE,
        attention=(flops * ATTENTION_SHARES[0], flops * ATTENTION_SHARES[1]),
        attention_alike=(flops * alike[0], flops * alike[1]),
        bandwidth=row.gbytes * 1e9 * BANDWIDTH_SHARE,
        has_bfloat16=row.has_bfloat16,
    )
