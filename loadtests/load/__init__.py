"""Load that behaves like applications, on Locust."""
