"""HTTP requests with one deadline for all of it, and where they may go. Knows no Kafka and no webhook."""
