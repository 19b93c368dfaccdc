"""The measurements as a table that draws only the rows in sight: thousands open at once."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QAbstractTableModel, QModelIndex, Qt


class TableModel(QAbstractTableModel):
    """Columns of equal length."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        super().__init__()
        self._names, self._columns = list(columns), list(columns.values())

    def rowCount(self, parent: QModelIndex | None = None) -> int:
        """As Qt asks for it."""
        return len(self._columns[0]) if self._columns else 0

    def columnCount(self, parent: QModelIndex | None = None) -> int:
        """As Qt asks for it."""
        return len(self._columns)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """As Qt asks for it."""
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        value = self._columns[index.column()][index.row()]
        return f"{value:g}" if isinstance(value, float) else str(value)

    def headerData(
        self, at: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> Any:
        """As Qt asks for it."""
        if role != Qt.ItemDataRole.DisplayRole or orientation == Qt.Orientation.Vertical:
            return None
        return self._names[at]
