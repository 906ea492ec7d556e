"""Results to one HTML page: `python -m scripts.report results=outputs/evaluate out=report.html`. See --help."""

from pathlib import Path

from omegaconf import DictConfig

from scripts.entry import entry
from vla.rollout.report import write_report


def main(config: DictConfig) -> None:
    """Writes the page that the config describes."""
    results = [config.results] if isinstance(config.results, str) else list(config.results)
    training = None if config.training is None else Path(config.training)
    out = Path(config.out)
    write_report(out, [Path(path) for path in results], training=training, title=config.title, summary=config.summary)
    print(f"wrote {out}")


if __name__ == "__main__":
    entry("report", main)
