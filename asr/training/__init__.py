"""Everything that needs PyTorch: features, network, training, export. Nothing else in the package imports it."""
