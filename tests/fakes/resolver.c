/* Preloaded: four.test, six.test and both.test have loopback addresses of IPv4, of IPv6, and of both. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>

typedef int (*lookup)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result)
{
    lookup real = (lookup)dlsym(RTLD_NEXT, "getaddrinfo");
    int family = hints ? hints->ai_family : AF_UNSPEC;
    int mapped = hints && family == AF_INET6 && (hints->ai_flags & AI_V4MAPPED);
    if (node && !strcmp(node, "four.test"))
        return family == AF_INET6 && !mapped ? EAI_NONAME
                                             : real(mapped ? "::ffff:127.0.0.1" : "127.0.0.1", service, hints, result);
    if (node && !strcmp(node, "six.test"))
        return family == AF_INET ? EAI_NONAME : real("::1", service, hints, result);
    if (node && !strcmp(node, "both.test"))
        return real(family == AF_INET ? "127.0.0.1" : "::1", service, hints, result);
    return real(node, service, hints, result);
}
