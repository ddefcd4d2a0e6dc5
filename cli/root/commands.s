// This file lets commands.go declare a function without a body.
