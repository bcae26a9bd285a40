"""The first tables."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Create the products."""

    initial = True
    operations = [
        migrations.CreateModel(
            "Product",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("name", models.CharField(max_length=100)),
                ("stock", models.IntegerField(default=0)),
            ],
        )
    ]
