"""The experiments of arXiv 2504.11320, on the same simulator and core that everything else uses."""
