"""The dock widget: the form and the table, and what happens when something in them is used."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

import msgspec
import numpy as np
from napari import Viewer
from napari.layers import Image, Labels
from napari.utils.notifications import show_error, show_warning
from qtpy.QtCore import QEvent, QModelIndex, QTimer
from qtpy.QtGui import QShowEvent
from qtpy.QtWidgets import QAbstractItemView, QScrollArea, QTableView, QVBoxLayout, QWidget

from napari_spatialembed.client import Answer, ModelClient
from napari_spatialembed.form import NO_AXIS, Form
from napari_spatialembed.planes import Plane, full_data, pixel_um, placement, shown_index
from napari_spatialembed.table import TableModel
from spatialembed.console import printable
from spatialembed.serve.pipe import Bytes, Meta

LOOK_MS = 30
"""How often the answers are looked for while there is work."""
REST_MS = 120
"""A slider that has rested so long is followed."""


class _Work:
    """One press of the button: what was asked, and the layer that shows the answer."""

    def __init__(self, image: Any, plane: Plane, model: str) -> None:
        self.image, self.plane = image, plane
        self.name = f"{image.name} {model}"
        self.sides = full_data(image).shape[: image.ndim - 2]
        self.where = placement(image, plane)
        self.pixel_um = pixel_um(image)
        self.layer: Labels | None = None
        self.answered = False  # its maps are there: other thresholds can be asked for


class DetectWidget(QWidget):
    """Detect the instances of an image layer; opened by napari."""

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self.form = Form(self._images)
        self.table = QTableView()
        self._client: ModelClient | None = None
        self._work: _Work | None = None
        self._touched: dict[str, float] = {}  # thresholds that the user has set
        self._asked: deque[_Work] = deque()  # of each question without its last answer
        self._behind = False  # a slider was moved while a question was under way
        self._docked = False
        self._looking = QTimer(self, interval=LOOK_MS)
        self._resting = QTimer(self, interval=REST_MS, singleShot=True)
        self._lay_out()
        self._connect()
        self._layers_changed()

    # ------------------------------------------------------------ made and taken down

    def _lay_out(self) -> None:
        self._scrolled = QScrollArea()
        self._scrolled.setWidgetResizable(True)
        self._scrolled.setWidget(self.form.body.native)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.verticalHeader().hide()
        self.table.setMinimumHeight(120)
        self.table.horizontalHeader().setResizeContentsPrecision(0)  # by the rows in sight
        layout = QVBoxLayout(self)
        layout.addWidget(self._scrolled, stretch=3)
        layout.addWidget(self.table, stretch=1)

    def _connect(self) -> None:
        form = self.form
        form.image.changed.connect(self._image_changed)
        form.axis.changed.connect(self._axis_changed)
        form.model.changed.connect(self._model_changed)
        form.folder.changed.connect(self._model_changed)
        form.reset.changed.connect(self.reset)
        form.run.changed.connect(self.run)
        form.cancel.changed.connect(self.cancel)
        for name, slider in form.thresholds.items():
            slider.changed.connect(partial(self._moved, name))
        self._looking.timeout.connect(self._look)
        self._resting.timeout.connect(self._ask_again)
        self.table.clicked.connect(self._show_object)
        self._layer_events = self.viewer.layers.events
        for event in self._list_events():
            event.connect(self._layers_changed)

    def _list_events(self) -> list[Any]:
        events = self._layer_events
        return [events.inserted, events.removed, events.reordered]

    def showEvent(self, event: QShowEvent) -> None:
        """Measure the form, now that it has the style of napari."""
        super().showEvent(event)
        self._fit_width()

    def _fit_width(self) -> None:
        """Wide enough for the rows in sight: a form is not to be scrolled sideways."""
        bar = self._scrolled.verticalScrollBar().sizeHint().width()
        frame = 2 * self._scrolled.frameWidth()
        wanted = self.form.body.native.minimumSizeHint().width()
        self._scrolled.setMinimumWidth(wanted + bar + frame)

    def changeEvent(self, event: QEvent) -> None:
        """Go when the dock has gone: napari lets go of the widget, and nobody else would end it."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange:
            if self.parent() is not None:
                self._docked = True
            elif self._docked:
                self._docked = False
                self.take_down()
                self.deleteLater()

    def take_down(self) -> None:
        """End the process, and hear of nothing any more."""
        self._looking.stop()
        self._resting.stop()
        if self._client is not None:
            self._client.stop()
        self._client = self._work = None
        for event in self._list_events():
            event.disconnect(self._layers_changed)
        self.form.image.choices = []
        self.table.setModel(None)

    # ------------------------------------------------------------ what the form offers

    def _images(self, _: Any = None) -> list[tuple[str, Any]]:
        layers = self.viewer.layers
        return [(layer.name, layer) for layer in layers if isinstance(layer, Image)]

    def _layers_changed(self, _: Any = None) -> None:
        self.form.image.reset_choices()
        self._image_changed()

    def _sides(self) -> tuple[int, ...]:
        image = self.form.image.value
        return () if image is None else tuple(full_data(image).shape[: image.ndim - 2])

    def _image_changed(self, _: Any = None) -> None:
        image, sides = self.form.image.value, self._sides()
        names = () if image is None else tuple(image.axis_labels[: len(sides)])
        self.form.offer_axes(sides, names)
        self._fit_width()

    def _axis_changed(self, _: Any = None) -> None:
        self.form.offer_channels(self._sides())
        self._fit_width()

    def _model_changed(self, _: Any = None) -> None:
        self._touched = {}  # those of the new model, from the next run on
        self._fit_width()

    def reset(self, _: Any = None) -> None:
        """The thresholds of the model again."""
        self._touched = {}
        self._moved_on()

    # ------------------------------------------------------------ questions

    def plane(self) -> Plane:
        """The picture that the form names, of the plane that is shown."""
        image, axis = self.form.image.value, self.form.axis.value
        index = shown_index(image, self.viewer.dims.point)
        if axis == NO_AXIS:
            return Plane(index)
        return Plane(index, axis, self.form.channel.value)

    def run(self, _: Any = None) -> None:
        """Detect, by the settings as they stand."""
        if self.form.image.value is None:
            show_warning("no image layer is chosen")
            return
        form, image, plane = self.form, self.form.image.value, self.plane()
        self._work = _Work(image, plane, form.model_name())
        data, rgb = full_data(image), bool(image.rgb)
        asked: Meta = {
            "do": "detect",
            "model": form.model_name(),
            "diameter": form.diameter_wanted(),
            "augment": form.augment.value,
            "memory": form.memory.value,
            "tile": form.tile.value or None,
            "thresholds": dict(self._touched),
            "pixel_um": self._work.pixel_um,
        }

        def question() -> tuple[Meta, Bytes]:
            pixels = plane.pixels(data, rgb)
            more = {"dtype": pixels.dtype.str, "shape": pixels.shape}
            return asked | more, pixels.ravel().view(np.uint8).data  # no copy

        form.working(True)
        form.say("starting")
        self._ask(self._work, question)

    def cancel(self, _: Any = None) -> None:
        """End what runs, in the middle of it, and start a new process for the next time."""
        if self._client is not None:
            self._client.stop()
        self._client, self._behind = self._started(), False
        self._asked.clear()
        if self._work is not None:
            self._work.answered = False
        self._looking.stop()
        self.form.working(False)
        self.form.say("cancelled")

    def _moved(self, threshold: str, value: float) -> None:
        self._touched[threshold] = value
        self._moved_on()

    def _moved_on(self) -> None:
        if self._work is not None and self._work.answered:
            self._resting.start()

    def _ask_again(self) -> None:
        """Cluster again, by the thresholds as they stand; not before the last answer."""
        work = self._work
        if work is None or not work.answered:
            return
        if self._asked:
            self._behind = True
            return
        asked: Meta = {"do": "again", "thresholds": dict(self._touched), "pixel_um": work.pixel_um}
        self._ask(work, lambda: (asked, b""))

    def _ask(self, work: _Work, question: Any) -> None:
        if self._client is None:
            self._client = self._started()
        self._asked.append(work)
        self._client.ask(question)
        self._looking.start()

    def _started(self) -> ModelClient:
        client = ModelClient()
        self.destroyed.connect(client.stop)  # with the window, where the dock does not go first
        return client

    # ------------------------------------------------------------ answers

    def _look(self) -> None:
        for answer in self._client.answers() if self._client is not None else []:
            getattr(self, f"_on_{answer.meta['kind']}")(answer)

    def _on_stage(self, answer: Answer) -> None:
        self.form.say(answer.meta["text"])

    def _on_progress(self, answer: Answer) -> None:
        self.form.say("network", answer.meta["share"])

    def _on_warning(self, answer: Answer) -> None:
        show_warning(printable(answer.meta["text"]))

    def _on_failed(self, answer: Answer) -> None:
        self._settled()
        if answer.meta.get("gone"):
            self._client = self._work = None
            self._asked.clear()
            self.form.working(False)
        text = answer.meta["text"]
        self.form.say(printable(text.strip().splitlines()[-1]))
        show_error(text)

    def _on_found(self, answer: Answer) -> None:
        work, facts = self._settled(), answer.meta
        if work is not self._work:
            return
        work.answered = True
        self.form.show_thresholds(facts["thresholds"] | self._touched)
        shape = tuple(facts["shape"])
        pixels = shape[0] * shape[1]
        labels = np.frombuffer(answer.body, np.int32, count=pixels).reshape(shape)
        columns = msgspec.json.decode(memoryview(answer.body)[4 * pixels :])
        self._show(work, work.plane.spread(labels, work.sides), columns)
        more = "; stopped at max_instances" if facts["truncated"] else ""
        self.form.say(f"{facts['objects']} objects in {facts['seconds']:.2f} s{more}", 1.0)

    def _settled(self) -> _Work:
        """What the question was about that has its last answer now; maybe no longer the latest."""
        work = self._asked.popleft()
        if work is self._work:
            self.form.working(False)
        if not self._asked:
            self._looking.stop()
        if self._behind:
            self._behind = False
            self._resting.start()
        return work

    def _show(self, work: _Work, labels: np.ndarray, columns: dict[str, list[Any]]) -> None:
        features = {"index": columns["id"], **{k: v for k, v in columns.items() if k != "id"}}
        if work.layer is None or work.layer not in self.viewer.layers:
            work.layer = Labels(labels, name=work.name, features=features, **work.where)
            self.viewer.add_layer(work.layer)
        else:
            work.layer.data = labels
            work.layer.features = features
        self.table.setModel(TableModel(columns))
        self.table.resizeColumnsToContents()

    def _show_object(self, index: QModelIndex) -> None:
        """Make the object of a row the label that is selected."""
        if self._work is not None and self._work.layer is not None:
            self._work.layer.selected_label = index.row() + 1
