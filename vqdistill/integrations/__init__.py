"""Adapters to the frameworks in which people search: one module a framework, each loaded only when it is used."""
