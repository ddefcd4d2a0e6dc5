package shimapi

// LifelineEnv has the number of a descriptor that a shim inherits: the end of a pipe whose
// other end the agent has, and nobody writes to. When it ends, so does a shim that has no
// container and for which none is being created: nobody knows it but that agent.
const LifelineEnv = "DROVER_LIFELINE"
