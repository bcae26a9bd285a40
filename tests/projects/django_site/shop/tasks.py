"""Tasks that know nothing of live updates."""

import time

from celery import shared_task

from shop.models import Product


@shared_task(bind=True)
def import_products(self, names, seconds=0.0):
    for number, name in enumerate(names, 1):
        Product.objects.create(name=name)
        time.sleep(seconds)
        meta = {"current": number, "total": len(names), "message": "Importing products"}
        self.update_state(state="IMPORTING", meta={**meta, "product": name})


@shared_task
def count_products():
    return Product.objects.count()


@shared_task
def charge(card):
    raise ValueError(f"the card {card} has expired")


@shared_task(bind=True, autoretry_for=(ConnectionError,), retry_backoff=False)
def send_receipt(self, address):
    if self.request.retries == 0:
        raise ConnectionError("the mail server does not answer")


send_receipt.default_retry_delay = 0
