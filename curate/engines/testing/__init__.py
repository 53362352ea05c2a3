"""Engines and models for tests: a scripted stub and tiny random models."""
