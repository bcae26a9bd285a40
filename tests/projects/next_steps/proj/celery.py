"""The layout of Celery's guide "Next steps". The broker is that of CELERY_BROKER_URL."""

from celery import Celery

app = Celery("proj", include=["proj.tasks"])
app.conf.update(result_expires=3600, task_ignore_result=True)

if __name__ == "__main__":
    app.start()
