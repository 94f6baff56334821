"""The mathematics of matching: pure functions that turn a cost into a plan or an assignment."""
