"""Quality experiments: each table in docs/results comes from a file that one of these wrote."""
