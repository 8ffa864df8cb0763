"""The language of Muster: facts, reports, assignments, reasons, subjects, ids. Imports only pydantic."""
