"""Figure 2: drawdown by class, the space of edits and the variance that its dimensions explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from editable_hf.experiments.edit_space import EditSpace
from editable_hf.experiments.plots import COLORS, import_pyplot, save_figure

# Ten classes that differ in lightness or in the marker where a color vision deficiency makes hues alike.
_CLASS_COLORS = (*COLORS, "#000000", "#7F7F7F", "#8C510A", "#5E3C99")
_MARKERS = "osv^DPX<>*"


def plot_drawdown_by_class(drawdowns: Mapping[str, Tensor], classes: Sequence[str], path: Path) -> None:
    """Draws which classes an edit of an image of each class hurts (Figure 2, left), one panel a model, one scale.

    Args:
        drawdowns: `(num_classes, num_classes)` of `drawdown_by_class` by name of the model.
        classes: Their names.
        path: PNG file to write.

    Raises:
        ImportError: Without matplotlib, naming the extra.
    """
    pyplot = import_pyplot()
    figure, panels = pyplot.subplots(
        1, len(drawdowns), figsize=(1.2 + 3.6 * len(drawdowns), 5.0), layout="constrained", squeeze=False, sharey=True
    )
    highest = max(float(100 * values.nan_to_num(0).max()) for values in drawdowns.values())
    for axes, (name, values) in zip(panels[0], drawdowns.items(), strict=True):
        # Cividis reads the same with and without color vision deficiency.
        image = axes.imshow(100 * values.numpy(), cmap="cividis", vmin=0, vmax=highest)
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
        axes.set(title=name, xlabel="class of the test images")
    panels[0, 0].set_ylabel("class of the edited image")
    figure.colorbar(image, ax=panels[0].tolist(), label="drawdown (points)", shrink=0.75)
    figure.savefig(path, dpi=150, bbox_inches="tight")  # the panels are square: room is left above them
    pyplot.close(figure)


def plot_edit_space(spaces: Mapping[str, tuple[Tensor, EditSpace]], classes: Sequence[str], path: Path) -> None:
    """Draws each edit as a point (Figure 2, middle): color and marker for the image's class, paler for later targets.

    Args:
        spaces: Points `(num_edits, 2)` of `embed_edits` and the edits, by name of the model.
        classes: Names of the classes.
        path: PNG file to write.

    Raises:
        ImportError: Without matplotlib, naming the extra.
        ValueError: For more classes than can be told apart.
    """
    if len(classes) > len(_CLASS_COLORS):
        raise ValueError(f"At most {len(_CLASS_COLORS)} classes can be told apart, got {len(classes)}.")
    pyplot = import_pyplot()
    from matplotlib.colors import to_rgb

    figure, panels = pyplot.subplots(
        1, len(spaces), figsize=(4.2 * len(spaces), 5.0), layout="constrained", squeeze=False
    )
    for axes, (name, (points, space)) in zip(panels[0], spaces.items(), strict=True):
        for index, label in enumerate(classes):
            own = space.labels == index
            paleness = [0.6 * target / max(1, len(classes) - 1) for target in space.targets[own].tolist()]
            rgb = to_rgb(_CLASS_COLORS[index])
            colors = [[part + (1 - part) * pale for part in rgb] for pale in paleness]
            marker = _MARKERS[index]
            axes.scatter(*points[own].T.numpy(), c=colors or None, s=14, marker=marker, linewidths=0)
            if axes is panels[0, 0]:  # one entry for each class, in its full color
                axes.scatter([], [], color=[rgb], marker=marker, s=30, label=label)
        axes.set(title=f"{name}, {len(points)} edits", xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    title = "class of the edited image; the paler, the later the wanted class in this list"
    figure.legend(loc="outside lower center", ncols=min(5, len(classes)), frameon=False, title=title)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def plot_explained_variance(curves: Mapping[str, Tensor], path: Path) -> None:
    """Draws the share of variance that the first components explain (Figure 2, right), one line a model.

    Args:
        curves: `(num_components,)` of `explained_variance` by name of the model, fractions.
        path: PNG file to write.

    Raises:
        ImportError: Without matplotlib, naming the extra.
    """
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    for number, (name, values) in enumerate(curves.items()):
        style = {"color": COLORS[number % len(COLORS)], "linestyle": ("-", "--", ":")[number % 3]}
        axes.plot(range(1, len(values) + 1), 100 * values.numpy(), linewidth=2, label=name, **style)
    axes.set(xlabel="components of the truncated SVD", ylabel="explained variance (%)", ylim=(0, 100))
    axes.set_xlim(1, max(map(len, curves.values())))
    axes.legend(frameon=False, loc="lower right")
    save_figure(figure, axes, path)
