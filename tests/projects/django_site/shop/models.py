"""What the shop sells."""

from django.db import models


class Product(models.Model):
    """A product and its stock."""

    name = models.CharField(max_length=100)
    stock = models.IntegerField(default=0)
