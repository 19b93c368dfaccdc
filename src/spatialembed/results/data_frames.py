"""The objects of one image as a table of pandas or geopandas, by the columns of ``objects_csv``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spatialembed.errors import missing_extra
from spatialembed.results.measurements import measure
from spatialembed.results.objects_csv import columns
from spatialembed.results.overlay import pixels_of
from spatialembed.results.polygons import Polygon, polygons
from spatialembed.types import Instances

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from pandas import DataFrame


def columns_of(
    found: Instances, image: Any = None, pixel_um: tuple[float, float] | None = None
) -> dict[str, list[Any]]:
    """``objects_csv.columns`` of instances; see ``Instances.to_dataframe`` for the arguments."""
    host = found.numpy()
    pixels = None if image is None else pixels_of(image, host)
    return columns(host, measure(host.labels, len(host), pixels), pixel_um)


def to_dataframe(
    found: Instances, image: Any = None, pixel_um: tuple[float, float] | None = None
) -> DataFrame:
    """See ``Instances.to_dataframe``."""
    try:
        import pandas
    except ImportError as error:
        raise missing_extra("pandas", "tables", "making a data frame") from error
    return pandas.DataFrame(columns_of(found, image, pixel_um)).set_index("id")


def to_geopandas(
    found: Instances, image: Any = None, pixel_um: tuple[float, float] | None = None
) -> GeoDataFrame:
    """See ``Instances.to_geopandas``."""
    try:
        import geopandas
        import shapely
    except ImportError as error:
        raise missing_extra("geopandas", "tables", "making a geometric data frame") from error

    def shape(parts: list[Polygon]) -> Any:
        rings = [shapely.Polygon(outer, holes) for outer, *holes in parts]
        return rings[0] if len(rings) == 1 else shapely.MultiPolygon(rings)

    table = to_dataframe(found, image, pixel_um)
    outlines = polygons(found.numpy().labels, len(found))
    return geopandas.GeoDataFrame(table, geometry=[shape(parts) for parts in outlines])
