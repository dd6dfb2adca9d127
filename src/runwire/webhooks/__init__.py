"""Web hooks: events that are sent to the URLs of subscriptions."""
