"""Published feature sets -> feature store. One file per format; `wsvad ls formats` lists them."""

from data.importers.base import Format, format_of, importers
from data.importers.run import ImportReport, import_features

__all__ = ["Format", "ImportReport", "format_of", "import_features", "importers"]
