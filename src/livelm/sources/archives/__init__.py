"""Web archives, WARC and ARC: from whole crawls to one damaged file."""

from livelm.sources.archives.source import Archives, ArchivesSettings

__all__ = ["Archives", "ArchivesSettings"]
