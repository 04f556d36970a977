"""What demo, benchmark and tests need around the product: private servers, import contracts.

Nothing here is shipped: the product never imports it.
"""
