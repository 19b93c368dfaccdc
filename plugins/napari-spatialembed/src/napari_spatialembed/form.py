"""The form: layer, model, plane, thresholds and buttons, and what stands in them as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from magicgui.widgets import (
    CheckBox,
    ComboBox,
    Container,
    FileEdit,
    FloatSlider,
    FloatSpinBox,
    Label,
    ProgressBar,
    PushButton,
    SpinBox,
)

from spatialembed.inference.bundled import summaries
from spatialembed.options import ClusterOptions

FOLDER = "a folder ..."
MODELS_OWN, AUTO, NATIVE, PIXELS = "as the model says", "auto", "native", "in px"
NO_AXIS = "none"
MAXIMUM = "maximum of all"
SLIDER_PX = 160
"""With its number; the rest of the row is its name."""


def _help(text: str) -> dict[str, str]:
    return {"tooltip": text}


class Form:
    """The widgets, in the order in which they stand."""

    def __init__(self, layers: Callable[[Any], list[tuple[str, Any]]]) -> None:
        """layers: choices of the first field, names and layers."""
        models = summaries()
        self.image = ComboBox(label="image", choices=layers)
        self.model = ComboBox(
            label="model",
            choices=[*models, FOLDER],
            value="nuclei" if "nuclei" in models else None,
            **_help("\n".join(f"{name}: {text}" for name, text in models.items())),
        )
        self.folder = FileEdit(label="folder", mode="d", **_help("of a model that you trained"))
        self.diameter = ComboBox(
            label="diameter",
            choices=[MODELS_OWN, AUTO, NATIVE, PIXELS],
            **_help("Of the objects. auto: each image is tried at smaller scales too."),
        )
        self.pixels = FloatSpinBox(label="px", value=30.0, min=1.0, max=10_000.0)
        self.axis = ComboBox(
            label="channel axis",
            choices=[NO_AXIS],
            **_help("Of the other axes the plane is predicted that the sliders of napari show."),
        )
        self.channel = ComboBox(label="channel", choices=[MAXIMUM])
        self.augment = CheckBox(
            label="average over turns",
            **_help("The maps of 8 turns and flips, at 8 times the cost"),
        )
        self.memory = FloatSpinBox(
            label="memory (GB)", value=3.0, min=1.2, max=1024.0, step=0.5,
            **_help("Larger images go through the network tile by tile."),
        )  # fmt: skip
        self.tile = SpinBox(
            label="tile (px)", value=0, min=0, max=1 << 16, step=64,
            **_help("Side of the tiles, images above it go by tiles; 0: by memory"),
        )  # fmt: skip
        self.thresholds = _sliders()
        self.reset = PushButton(text="Thresholds of the model")
        self.run = PushButton(text="Detect")
        self.cancel = PushButton(text="Cancel", enabled=False)
        self.progress = ProgressBar(visible=False, min=0, max=100)
        self.said = Label(value="")
        self.body = Container(widgets=self._rows())
        self.model.changed.connect(self._fit)
        self.diameter.changed.connect(self._fit)
        self._fit()

    def _rows(self) -> list[Any]:
        buttons = Container(
            widgets=[self.run, self.cancel], layout="horizontal", labels=False, label=""
        )
        buttons.margins = (0, 0, 0, 0)
        return [
            self.image, self.model, self.folder, self.diameter, self.pixels, self.axis,
            self.channel, self.augment, self.memory, self.tile, *self.thresholds.values(),
            self.reset, buttons, self.progress, self.said,
        ]  # fmt: skip

    def _fit(self, *_: object) -> None:
        """Show the fields that count."""
        self.folder.visible = self.model.value == FOLDER
        self.pixels.visible = self.diameter.value == PIXELS
        self.axis.visible = len(self.axis.choices) > 1
        self.channel.visible = self.axis.visible and self.axis.value != NO_AXIS

    def model_name(self) -> str:
        """A bundled name or a path, as ``load`` takes it."""
        return str(self.folder.value) if self.model.value == FOLDER else str(self.model.value)

    def diameter_wanted(self) -> str | float | None:
        """As ``load`` takes it."""
        chosen = self.diameter.value
        return self.pixels.value if chosen == PIXELS else None if chosen == MODELS_OWN else chosen

    def offer_axes(self, sides: tuple[int, ...], names: tuple[str, ...]) -> None:
        """Fill the field of the channel axis; sides, names: of the axes before height."""
        offered = [(NO_AXIS, NO_AXIS)]
        for axis, (side, name) in enumerate(zip(sides, names, strict=True)):
            offered.append((f"{name or axis} ({side})", axis))
        self.axis.choices = offered
        self.offer_channels(sides)

    def offer_channels(self, sides: tuple[int, ...]) -> None:
        """Fill the field of the channel."""
        axis = self.axis.value
        number = 0 if axis == NO_AXIS else sides[axis]
        self.channel.choices = [*((str(i), i) for i in range(number)), (MAXIMUM, "max")]
        self._fit()

    def show_thresholds(self, values: dict[str, Any]) -> None:
        """Put the sliders to these values, within their ranges; nobody hears of it."""
        for name, slider in self.thresholds.items():
            with slider.changed.blocked():
                slider.value = min(max(values[name], slider.min), slider.max)

    def working(self, at_work: bool) -> None:
        """Which buttons may be pressed."""
        self.run.enabled, self.cancel.enabled = not at_work, at_work
        self.progress.visible = at_work

    def say(self, text: str, share: float | None = None) -> None:
        """A line below the buttons, and how far the bar is; None: not known."""
        self.said.value = text
        self.progress.max = 0 if share is None else 100
        self.progress.value = round(100 * (share or 0))


def _sliders() -> dict[str, Any]:
    """A slider for each threshold, by its name; its explanation is that of ``ClusterOptions``."""
    own = ClusterOptions()
    hints = {
        "foreground": "A pixel takes part if its seed is above this",
        "start": "A pixel can start an instance if its seed is at least this",
        "membership": "A pixel belongs to an instance if its phi is above this",
        "min_free": "More than this share of the members must be free",
        "min_pixels": "An instance has more pixels than this",
    }
    made: dict[str, Any] = {}
    for field in fields(own):
        if field.name not in hints:
            continue
        label = field.name.replace("_", " ")
        about: Any = {"name": field.name, "label": label, "value": getattr(own, field.name)}
        about |= _help(hints[field.name])
        if field.name == "min_pixels":
            made[field.name] = SpinBox(**about, min=0, max=(1 << 31) - 1)
        else:
            lowest = 0.01 if field.name == "membership" else 0.0
            highest = 1.0 if field.name == "start" else 0.99
            made[field.name] = FloatSlider(**about, min=lowest, max=highest, step=0.01)
            made[field.name].min_width = SLIDER_PX
    return made
