"""The report's sentences: what was run, how far it has come, what was found, and what each measure means."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from graphnet.schemas.experiment import Adam, AdamW, Architecture, Backbone, Data, Experiment, Mlp, Sgd
from graphnet.study.report.aggregate import Measure
from graphnet.study.report.run import Run
from graphnet.study.report.tables import ALPHA

__all__ = ["MEASURES", "findings", "progress", "what_was_run"]


def listing(words: Sequence[str]) -> str:
    """Words joined with commas and a final *and*.

    Examples
    --------
    >>> listing(["grow", "prune", "dense"])
    'grow, prune and dense'
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def progress(run: Run) -> tuple[str, str]:
    """``complete`` or ``partial``, and the sentence that says how far the run has come (HTML)."""
    counts = {status: sum(c.status == status for c in run.cells) for status in ("done", "running", "failed")}
    wanted = run.expected_cells()
    total = max(wanted or 0, len(run.cells))
    if total and counts["done"] == total:
        return "complete", f"All {total} training runs are finished."
    parts = [f"{counts['done']} of {total} training runs are finished"]
    if counts["running"]:
        parts.append(f"{counts['running']} are under way or were interrupted")
    if counts["failed"]:
        parts.append(f"{counts['failed']} failed")
    if total > len(run.cells):
        parts.append(f"{total - len(run.cells)} have not begun")
    text = (
        f"<strong>This is a partial report:</strong> {listing(parts)}. Tables and costs count finished phases only; "
        "curves are drawn from unfinished runs where no seed has finished."
    )
    return "partial", text


def _data(data: Data) -> str:
    limits = [
        f"{count:,} {name} examples".replace(",", "\u202f")
        for count, name in ((data.limit_train, "training"), (data.limit_test, "test"))
        if count
    ]
    held = [f"{100 * data.validation:g} % of the training set held out"] if data.validation else []
    extra = f" ({'; '.join([*limits, *held])})" if limits or held else ""
    return f"<strong>{escape(data.name)}</strong>{escape(extra)}"


def _backbone(backbone: Backbone) -> str:
    model = backbone.model
    groups = f"; the methods edit its unit groups {escape(listing(backbone.editable))}"
    if isinstance(model, Mlp):
        what = f"a multilayer perceptron {' → '.join(map(str, model.sizes))} ({escape(model.activation.name)})"
    elif isinstance(model, Architecture):
        what = f"the architecture in {escape(model.path)}" if model.path else "an architecture written out below"
    else:
        what = (
            f"a convolutional network with {' and '.join(map(str, model.channels))} channels, then fully connected "
            f"layers of {', '.join(map(str, model.hidden))} units ({escape(model.activation.name)})"
        )
    return f"<strong>{escape(backbone.name)}</strong>, {what}{groups}"


def _optimizer(experiment: Experiment) -> str:
    optimizer = experiment.train.optimizer
    parts = [f"learning rate {optimizer.lr:g}"]
    if experiment.train.lr_schedule == "cosine":
        parts.append("falling to zero along a cosine over the whole schedule")
    if isinstance(optimizer, Sgd):
        name = "SGD"
        parts += [f"momentum {optimizer.momentum:g}"] if optimizer.momentum else ["no momentum"]
    else:
        name = {Adam: "Adam", AdamW: "AdamW"}[type(optimizer)]
        parts.append(f"betas {optimizer.betas[0]:g} and {optimizer.betas[1]:g}")
    parts.append(f"weight decay {optimizer.weight_decay:g}" if optimizer.weight_decay else "no weight decay")
    return f"{name} ({', '.join(parts)}), batches of {experiment.train.batch_size}"


def _method(experiment: Experiment, index: int) -> str:
    method = experiment.methods[index]
    label = f"<strong>{escape(method.label or method.method)}</strong>"
    if method.method == "dense":
        return f"{label}: all units from the start to the end, as the reference."
    if method.method == "prune":
        after = {
            "init": "the survivors’ weights are set back to their initial values",
            "snapshot": f"the survivors’ weights are set back to those after epoch {method.snapshot_epoch}",
            "none": "the survivors keep their weights",
        }[method.rewind]
        return (
            f"{label}: starts with all units; at each cycle the units with the lowest {escape(method.score.name)} "
            f"score "
            f"are removed and {after}."
        )
    born = "wakes dormant units of the full network" if method.init.name == "recruit" else (
        f"adds new units ({escape(method.init.name)} initialiser)"
    )  # fmt: skip
    extra = []
    if method.interventions.two_speed:
        speed = method.interventions.two_speed
        extra.append(f"newborns learn {speed.rate:g} times as fast for {speed.steps} steps")
    if method.interventions.moment_transplant:
        extra.append("newborns get a donor’s optimizer moments")
    chosen = f", chosen by {escape(method.select)}" if method.init.name == "recruit" else ""
    more = f"; {'; '.join(extra)}" if extra else ""
    return (
        f"{label}: starts with {100 * method.seed_share:g} % of the units of each group; each cycle {born}{chosen}, "
        f"without rewinding; newborns’ optimizer state is {escape(method.state)}{more}."
    )


def what_was_run(run: Run) -> str:
    """The study in plain words, as HTML paragraphs."""
    experiment = run.experiment
    if experiment is None:
        methods = listing([f"{label} ({method})" for label, method in run.methods().items()])
        return (
            "<p>The experiment’s file is missing or damaged, so what was asked for is not known. The folder holds "
            "runs "
            f"of {escape(methods) or 'no method'} on {escape(listing(run.backbones())) or 'no backbone'}.</p>"
        )
    train = experiment.train
    cycles = f"{train.cycles} cycles of {train.epochs_per_cycle} epochs"
    levels = listing([f"{level:g}" for level in experiment.compactness])
    ticket = ""
    if experiment.ticket.enabled:
        how = "from new initial weights" if experiment.ticket.init == "reinitialise" else "from its initial weights"
        epochs = experiment.ticket.epochs or train.cycles * train.epochs_per_cycle
        ticket = f" Then the final structure is trained again by itself, {how}, for {epochs} epochs (the ticket)."
    seeds = len(experiment.seeds)
    methods = "".join(f"<li>{_method(experiment, i)}</li>" for i in range(len(experiment.methods)))
    backbones = "".join(f"<li>{_backbone(backbone)}.</li>" for backbone in experiment.backbones)
    bias = experiment.bias if isinstance(experiment.bias, str) else listing([f"{b:g}" for b in experiment.bias])
    return (
        f"<p>Networks that change their structure while they train, compared on {_data(experiment.data)} at the same "
        f"data, optimizer and final size. Training takes {cycles}; the structure changes at the start of a cycle."
        f"{ticket} Everything is repeated with {seeds} {'seed' if seeds == 1 else 'seeds'}.</p>"
        f"<ul>{methods}</ul>"
        f"<p>{'Backbone' if len(experiment.backbones) == 1 else 'Backbones'}, the full-size network:</p>"
        f"<ul>{backbones}</ul>"
        f"<p>Optimizer: {_optimizer(experiment)}. Compactness (the share of the editable layers’ weights that the "
        f"final "
        f"network keeps): {levels}, shared out among the layers with the {escape(bias)} bias.</p>"
    )


def findings(run: Run, tests: Sequence[tuple[Measure, float, float]]) -> str:
    """How often growth or pruning is ahead, counted from the tests."""
    if not tests:
        return (
            "<p>No test of growth against pruning can be made yet: it needs at least two finished seeds of each at "
            "the "
            "same compactness.</p>"
        )
    items = []
    for name, measures in (("While the structure changes (Cycle)", "cycle"), ("After retraining (Ticket)", "ticket")):
        own = [(d, p) for measure, d, p in tests if measure == f"{measures} acc"]
        if own:
            grow = sum(p < ALPHA and d > 0 for d, p in own)
            prune = sum(p < ALPHA and d < 0 for d, p in own)
            low, high = min(d for d, _ in own), max(d for d, _ in own)
            span = (
                f"{100 * low:+.2f}" if low == high else f"{100 * low:+.2f} to {100 * high:+.2f}"
            ).replace("-", "−")  # fmt: skip
            items.append(
                f"<li>{name}, final accuracy: of {len(own)} comparison{'s' * (len(own) > 1)}, growth is ahead in "
                f"{grow}, "
                f"pruning in {prune}, and {len(own) - grow - prune} are undecided (p &lt; {ALPHA:g} decides). Growth "
                f"minus pruning is {span} points.</li>"
            )
    note = (
        "<p class='note'>Each comparison is tested by itself, without a correction for their number: where there is "
        "no "
        "difference at all, about one in twenty is decided by chance.</p>"
    )
    return f"<ul>{''.join(items)}</ul>{note}"


MEASURES: tuple[tuple[str, str, str, str], ...] = (
    ("m-compactness", "Compactness", "",
     "The share of the weights in the editable layers that the final network keeps. It is turned into a number of "
     "units "
     "for each layer, the same for every method, so that methods are compared at the same final size."),
    ("m-cycle", "Cycle", "scores",
     "Test accuracy at the end of each cycle, while the structure is still changing."),
    ("m-ticket", "Ticket (winning ticket)", "scores",
     "The final structure, frozen and trained again from fresh weights on the same schedule. It asks whether the "
     "structure itself is good, apart from the way to it."),
    ("m-acc", "ACC", "scores", "Test accuracy at the last checkpoint; there is a checkpoint at the end of each cycle."),
    ("m-taa", "TAA (time-averaged accuracy)", "scores",
     "Mean test accuracy over all checkpoints: a method that is good early scores higher than one that is good only "
     "at "
     "the end."),
    ("m-delta", "Δ", "scores",
     "Ticket minus Cycle, for each seed, then averaged, in percentage points. Positive: the structure does better "
     "when it is trained afresh than while it was being found."),
    ("m-ci", "mean ± 95 % interval, n", "scores",
     "Over n seeds, with Student’s t: ± t<sub>n−1</sub> · s / √n. One seed has no interval. “5 / 3” means 5 seeds "
     "with "
     "a finished cycle phase, 3 with a finished ticket. The best method of a compactness is bold "
     "only where Welch’s test against the runner-up gives p &lt; 0.05."),
    ("m-welch", "Welch’s t-test", "tests",
     "Tests whether two means differ, without assuming equal spread. p is the probability of a difference at least "
     "as "
     "large if there were none."),
    ("m-flops", "FLOPs, executed and nominal", "cost",
     "Floating-point operations of training: 3 × the forward pass for each sample (forward, and backward at twice "
     "its cost), and the scoring of units. "
     "<em>Executed</em> counts the units that are live, which is what this engine computes. <em>Nominal</em> counts "
     "dormant units too: what an implementation that only masks units would compute."),
    ("m-psteps", "Parameter-steps", "cost", "Number of parameters, summed over all optimizer steps."),
    ("m-memory", "Optimizer memory", "cost",
     "Bytes of the optimizer’s state (momentum, moments) at its largest; plain SGD keeps none."),
    ("m-edit", "Edit time", "cost", "Wall time in which the network was edited rather than trained."),
    ("m-wtaa", "TAA weighted by cost", "cost",
     "Checkpoint accuracies averaged with the executed FLOPs of the cycle before each as weights: cycles that cost "
     "more "
     "count more."),
    ("m-percost", "ACC % per TFLOP", "cost",
     "ACC in per cent divided by the executed training FLOPs in units of 10<sup>12</sup>."),
    ("m-equal", "Equal cost", "equal-cost",
     "The accuracy that each method has reached when it has spent a given number of executed training FLOPs; at "
     "equal "
     "epochs, methods pay differently."),
    ("m-newborn", "Newborn, incumbent", "birth-parity",
     "A newborn is a unit that the last edit added; an incumbent was there before. For pruning, the two groups are "
     "the "
     "units kept and the units about to be pruned."),
    ("m-parity", "Parity, log-parity", "birth-parity",
     "R is the newborns’ mean signal divided by the incumbents’; ln R is 0 when they are equal, −0.69 when newborns "
     "have half, −2.3 when a tenth. <em>Activation</em>: share of inputs for which a unit’s output is above a "
     "threshold "
     "(0.05 unless set otherwise). <em>Gradient</em>: mean |∂L/∂z| of a unit’s pre-activation z. Both on one side "
     "batch, "
     "averaged over the edited groups."),
    ("m-moment", "Post, end, exit, survivors", "birth-parity",
     "When parity is measured. Post: newborns over incumbents right after the edit that added them. End: the same "
     "newborns at the end of their first cycle. Exit: units kept over units pruned, just before pruning. Survivors: "
     "the "
     "kept units’ signal after pruning over the same units’ signal before."),
    ("m-censored", "Age, time to parity, censored", "age-parity",
     "Age counts optimizer steps since birth. Time to parity is the first measured age at which newborns have half "
     "of "
     "the incumbents’ mean gradient; a cohort is censored when the next edit came first. The median is Kaplan and "
     "Meier’s, which allows for that."),
    ("m-dormant", "Dormant", "units",
     "A dormant unit keeps its weights and takes no part in the forward pass; it can be recruited later."),
    ("m-shock", "Function shock", "edits",
     "How far an edit moved the network at the moment it was made: KL divergence between its predictions before and "
     "after, and the change of the loss, on a side batch. 0 means that the function was preserved."),
)  # fmt: skip
"""Anchor, word, the section that shows it, and what it means (HTML)."""
