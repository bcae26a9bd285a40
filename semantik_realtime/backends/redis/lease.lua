-- Acquire or renew one of LIMIT places, by the server's clock.
--
-- KEYS  places (sorted set: holder -> its end in ms)    ARGV  holder, limit, ms
-- Return 1, or 0 if other holders have all places.
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local holds = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '0') > now
if not holds
  and redis.call('ZCOUNT', KEYS[1], string.format('(%d', now), '+inf') >= tonumber(ARGV[2]) then
  return 0
end
-- First the command that adds: a server whose memory is full refuses it, but not ZREMRANGEBYSCORE,
-- and a script that has written something is no longer refused.
redis.call('ZADD', KEYS[1], string.format('%d', now + ARGV[3]), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%d', now))
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1
