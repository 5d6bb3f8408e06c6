"""Where candidates are drawn: TGI first, others by flavour."""
