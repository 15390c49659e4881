"""Names that a local folder has besides those of its cache."""

from eaglepipe.stores.local import MARKER

ARRIVING_FOLDER = ".arriving"
LOCAL_NAMES = (MARKER, ARRIVING_FOLDER)
