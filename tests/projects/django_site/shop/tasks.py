"""Tasks that know nothing of live updates."""

from celery import shared_task
from django.db import connection, transaction

from shop.models import Product


@shared_task
def count_products():
    return Product.objects.count()


@shared_task(bind=True)
def import_products(self, names):
    if Product._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(Product)
    with transaction.atomic():
        for number, name in enumerate(names, 1):
            Product.objects.create(name=name)
            self.update_state(
                state="IMPORTING", meta={"current": number, "total": len(names), "product": name}
            )
