"""The nightly path: teach the model its own winners, so that N may fall."""
