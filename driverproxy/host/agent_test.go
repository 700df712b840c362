package host_test

const agentCommand = "agent"

func agentMain([]string) int { return 2 }
