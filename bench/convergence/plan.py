"""Every run there is to make, in the order in which they are made: what all seeds need first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .exchanges import Options
from .training import Run

#: The exchanges, by the name that tables and pictures use.
VARIANTS: dict[str, Options] = {
    "float32": Options("float32"),
    "gather": Options("gather"),
    "gather, no clipping": Options("gather", clip=None),
    "gather, clip 1.5": Options("gather", clip=1.5),
    "gather, base-3": Options("gather", packing="base3"),
    "gather, blocks of 2560": Options("gather", block=2560),
    "gather, every layer ternary": Options("gather", carried="none"),
    "gather, base-3, every layer ternary": Options("gather", packing="base3", carried="none"),
    "gather, ends in float32": Options("gather", carried="ends"),
    "sum": Options("sum"),
    "requantize": Options("requantize"),
    "gather, feedback (clip 1.5)": Options("gather", clip=1.5, error_feedback=True),
    "sum, feedback (clip 1.5)": Options("sum", clip=1.5, error_feedback=True),
    "requantize, feedback (clip 1.5)": Options("requantize", clip=1.5, error_feedback=True),
    "GRACE's rule": Options("grace"),
    "HiPress's rule": Options("hipress"),
    "HiPress's rule, independent draws": Options("hipress_independent"),
}

#: Rates at which float32 has the least test loss, of those that the experiment "rates" tried on seeds that no other
#: uses; every exchange is given the same.
RATES = {"momentum": 0.08, "adam": 0.008, "sgd": 0.4}
RATES_TRIED = {"momentum": (0.02, 0.04, 0.08, 0.16), "adam": (0.002, 0.004, 0.008, 0.016), "sgd": (0.1, 0.2, 0.4, 0.8)}
TEXT_RATE = 0.002
TEXT_RATES_TRIED = (0.001, 0.002, 0.004, 0.008)

DIGITS = {"network": "lenet", "workers": 4, "batch": 64, "steps": 400, "optimizer": "momentum"}
TEXT = {"network": "transformer", "workers": 4, "batch": 32, "steps": 600, "optimizer": "adam", "rate": TEXT_RATE}
#: Images that a run sees, whatever its batch.
IMAGES = 64 * 400

SEEDS = range(5)
TEXT_SEEDS = range(3)
TUNING_SEEDS = range(100, 102)
WORKERS = (2, 4, 16, 64)
BATCHES = (16, 64, 256)

DIGITS_VARIANTS = tuple(name for name in VARIANTS if name != "gather, ends in float32")
SWEPT = ("float32", "gather", "requantize")
#: In the order of what is wanted first.
TEXT_VARIANTS = (
    ("float32", "gather", "requantize", "gather, feedback (clip 1.5)"),
    ("gather, no clipping", "gather, blocks of 2560", "gather, ends in float32"),
    ("sum", "requantize, feedback (clip 1.5)", "GRACE's rule"),
)
FEEDBACK = "gather, feedback (clip 1.5)"
VARIED = (*SWEPT, FEEDBACK)

#: What each file of results is about.
EXPERIMENTS = {
    "rates": "both networks at several rates, on seeds of its own",
    "strategies": "LeNet on digits, 4 workers, 16 images each, momentum",
    "workers": "the same, 64 images dealt to 2 to 64 workers",
    "batches": "the same, 16 to 256 images a step, rates in proportion, as many images in all",
    "optimizers": "the same with plain SGD and with Adam",
    "constant": "the same at a constant rate",
    "half": "the same at half the rate",
    "text": "a transformer on text, 4 workers, 8 runs of 64 characters each, Adam",
}


def tuning(*variants: str, optimizers: tuple[str, ...] = tuple(RATES_TRIED)) -> Iterator[Run]:
    """Every rate tried, with ternary gradients too: they might like another one."""
    for optimizer in optimizers:
        for variant in variants:
            for rate in RATES_TRIED[optimizer]:
                for seed in TUNING_SEEDS:
                    yield replace(_digits("rates", variant, seed), optimizer=optimizer, rate=rate)


def text_tuning(*variants: str) -> Iterator[Run]:
    """The same for the transformer."""
    for variant in variants:
        for rate in TEXT_RATES_TRIED:
            yield replace(_text("rates", variant, TUNING_SEEDS[0]), rate=rate)


def _digits(experiment: str, variant: str, seed: int) -> Run:
    return Run(experiment, variant, seed, VARIANTS[variant], rate=RATES["momentum"], **DIGITS)  # type: ignore[arg-type]


def _text(experiment: str, variant: str, seed: int) -> Run:
    return Run(experiment, variant, seed, VARIANTS[variant], **TEXT)  # type: ignore[arg-type]


def _sweeps(seed: int) -> Iterator[Run]:
    """What differs in one setting from the experiment "strategies"; that itself has the points they share."""
    for variant in SWEPT:
        yield replace(_digits("half", variant, seed), rate=RATES["momentum"] / 2)
        for workers in WORKERS:
            if workers == WORKERS[-1] if variant != "gather" else workers != DIGITS["workers"]:
                yield replace(_digits("workers", variant, seed), workers=workers)
        if variant == "requantize":
            continue
        yield replace(_digits("constant", variant, seed), schedule="constant")
        for optimizer in ("adam", "sgd"):
            run = _digits("optimizers", variant, seed)
            yield replace(run, optimizer=optimizer, rate=RATES[optimizer])
        for batch in BATCHES:
            if batch != DIGITS["batch"]:
                run = _digits("batches", variant, seed)
                yield replace(run, batch=batch, steps=IMAGES // batch, rate=run.rate * batch / run.batch)


def runs() -> list[Run]:
    """All of them."""
    found = [*tuning("float32"), *text_tuning("float32")]
    for seed in SEEDS:
        found += [_digits("strategies", variant, seed) for variant in DIGITS_VARIANTS]
    for variants in TEXT_VARIANTS:
        found += [_text("text", variant, seed) for seed in TEXT_SEEDS for variant in variants]
        found += text_tuning("gather")
    for seed in SEEDS:
        found += _sweeps(seed)
    found += tuning("gather", optimizers=("momentum",))
    return list(dict.fromkeys(found))


def quick() -> list[Run]:
    """A few steps of each experiment, to see that everything works."""
    small: list[Run] = []
    for run in runs():
        if run.seed == 0 and (run.experiment != "text" or run.variant in SWEPT):
            steps, batch = (2, 8) if run.network == "transformer" else (3, min(run.batch, max(16, run.workers)))
            small.append(replace(run, steps=steps, batch=batch))
    return small
