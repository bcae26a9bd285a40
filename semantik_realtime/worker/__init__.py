"""The worker's side: events from Celery's signals and from what tasks report."""
