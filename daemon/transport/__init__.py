"""Sockets and the peers behind them: client routers, the workers' router, TCP with CURVE."""
