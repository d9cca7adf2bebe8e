"""The extras of the package: what each is for, and how a message says that one is missing."""

PURPOSES = {
    "plot": "pictures",
    "calibrate": "wait-core calibrate",
    "zstd": "traces packed by zstd",
    "hardware": "GPUs and models beyond the shipped ones",
    "report": "pages of HTML (--report)",
    "polars": "Report.to_polars",
    "arrow": "Report.to_arrow and Parquet",
    "vllm": "serving",
    "ray": "many replicas under Ray Serve",
}
"""The extras that a user may need; pyproject.toml says what each installs."""


def install(extra: str) -> str:
    """Return the command that installs an extra, and where it is run: the package is installed from its source."""
    return f"pip install '.[{extra}]' in the repository of wait-core"
