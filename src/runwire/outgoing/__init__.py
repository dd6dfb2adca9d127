"""HTTP requests to servers of others: whom they may reach, and how they are sent."""
