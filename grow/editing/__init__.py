"""Edits of a network, planned apart from it: what they would leave behind is computed first, and carried out by assignments alone."""
