"""What we measure, against whom: `python -m bench [NAME …]`. Real servers, real services, no mocks; nothing is left behind."""
