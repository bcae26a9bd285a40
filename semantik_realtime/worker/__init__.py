"""The worker's side: from Celery's signals and a task's own words to events."""
